"""Compare the service with a naive handler, as tutorials write it, under the load of 32 clients.

python benchmarks/serve.py --model logs/latest/export/model.onnx
python benchmarks/serve.py --model cnn.onnx --model resnet18.onnx --model resnet18_int8.onnx --seconds 20 --rounds 3

Both sides are started in turn in each round, and get the same image from clients in another process, each of which
sends its next request when it has an answer. The naive side runs the fp32 file of its model: of NAME_int8.onnx it runs
NAME.onnx if that exists. `cpu_ms` is the CPU time of all processes of a side per request, `memory_mb` their resident
set at the end. With `--busy 2`, two other processes compute all the time, as on a shared machine.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from train_speed import PROJECT_ROOT, busy_processes, describe_environment

NUM_CLIENTS = 32
PORT = 8765
WARM_UP_S = 1.0
PHOTO_PX = (500, 375)  # as in ImageNet; a network of small images gets images of its own size
FIGURES = ("requests_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "memory_mb")


def serve_naively(file: Path, port: int) -> None:
    """Serve a model as most tutorials do: decode and run in the handler, one image at a time."""
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI, UploadFile

    session = onnxruntime.InferenceSession(file)
    size = session.get_inputs()[0].shape[-1]
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    app = FastAPI()

    @app.post("/predict")
    async def predict(file: UploadFile) -> dict:
        image = Image.open(BytesIO(await file.read())).convert("RGB").resize((size, size))
        pixels = np.asarray(image).transpose(2, 0, 1)[None]
        (probabilities,) = session.run(["probabilities"], {"images": np.ascontiguousarray(pixels)})[0]
        best = int(probabilities.argmax())
        return {"class": names[best], "confidence": float(probabilities[best])}

    @app.get("/ready")
    async def ready() -> dict:
        return {}

    uvicorn.run(app, port=port, log_level="warning")


def draw_image(size: int) -> bytes:
    """Draw a smooth image with noise: a PNG for networks of small images, else a JPEG of the size of a photo."""
    is_small = size <= 64
    width, height = (size, size) if is_small else PHOTO_PX
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height))
    noise = generator.normal(0, 8, (height, width, 3))
    content = BytesIO()
    image = Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))
    image.save(content, "PNG" if is_small else "JPEG")
    return content.getvalue()


@contextmanager
def started(command: list[str], port: int) -> Iterator[psutil.Process]:
    """Start a server, wait until it is ready, and stop it at the end."""
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s and asyncio.run(is_ready(port)) is False:
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def is_ready(port: int) -> bool:
    """Return whether a server answers with 200."""
    try:
        connection = await asyncio.open_connection("127.0.0.1", port)
        return await exchange(*connection, b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n") == 200
    except OSError:
        return False


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request, read the whole answer, and return its status."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split()[1])


async def load(port: int, image: bytes, seconds: float) -> list[float]:
    """Send requests from all clients for a time; return the time of each in seconds, without those of the warm-up."""
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + image + b"\r\n--b--\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(part)}\r\n"
    request = f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + part
    start_s = time.perf_counter() + WARM_UP_S
    times: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent_s := time.perf_counter()) < start_s + seconds:
            if (status := await exchange(reader, writer, request)) != 200:
                raise RuntimeError(f"status {status}")
            if sent_s >= start_s:
                times.append(time.perf_counter() - sent_s)

    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    return times


def measure(command: list[str], port: int, image: Path, seconds: float) -> dict[str, float]:
    """Start a server, load it from another process, and return its figures."""
    with started(command, port) as server:
        client = [sys.executable, __file__, "--load", str(image), str(seconds), str(port)]
        processes = [server, *server.children(recursive=True)]
        before_s = cpu_seconds(processes)
        times = json.loads(subprocess.run(client, check=True, capture_output=True, text=True).stdout)
        cpu_ms = 1000 * (cpu_seconds(processes) - before_s) / len(times) * seconds / (seconds + WARM_UP_S)
        memory_mb = sum(process.memory_info().rss for process in processes) / 2**20
    cuts = [1000 * time_s for time_s in statistics.quantiles(times, n=100)]
    figures = (len(times) / seconds, cuts[49], cuts[94], cuts[98], cpu_ms, memory_mb)
    return {name: round(value, 2) for name, value in zip(FIGURES, figures, strict=True)}


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the CPU time that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def compare(file: Path, settings: list[str], rounds: int, seconds: float, folder: Path) -> dict:
    """Measure both sides in turn; return the figures of each round, their medians and the ratios of these."""
    import onnx

    plain = file.with_name(file.name.replace("_int8", ""))
    naive_file = plain if plain.is_file() else file
    size = onnx.load(file).graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    image = folder / "image"
    image.write_bytes(draw_image(size))
    commands = {
        "naive": [sys.executable, __file__, "--naive", str(naive_file), str(PORT)],
        "imago": [sys.executable, "src/serve.py", f"model={file}", f"port={PORT}", *settings],
    }
    results: dict = {side: [] for side in commands}
    for _ in range(rounds):
        for side, command in commands.items():
            results[side].append(measure(command, PORT, image, seconds))
            print(f"{file.name} {side}: {results[side][-1]}", flush=True)
    medians = {side: {name: statistics.median(r[name] for r in results[side]) for name in FIGURES} for side in commands}
    ratios = {name: round(medians["imago"][name] / medians["naive"][name], 3) for name in FIGURES}
    print(f"{file.name} imago / naive: {ratios}")
    measured = {"input_px": size, "image_bytes": image.stat().st_size}
    return measured | {"rounds": results, "medians": medians, "ratios": ratios}


def main() -> None:
    """Compare for each model and store the results; or be one of the processes of that."""
    if sys.argv[1:2] == ["--naive"]:
        return serve_naively(Path(sys.argv[2]), int(sys.argv[3]))
    if sys.argv[1:2] == ["--load"]:
        image, seconds, port = Path(sys.argv[2]).read_bytes(), float(sys.argv[3]), int(sys.argv[4])
        return print(json.dumps(asyncio.run(load(port, image, seconds))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="FILE", help="repeatable")
    parser.add_argument("settings", nargs="*", help="of the service, e.g. max_wait_ms=2")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (default: 20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other processes that compute all the time (default: 0)")
    parser.add_argument("--json", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "serve.json")
    args = parser.parse_args()
    results = {}
    for file in map(Path.resolve, args.model):
        name = f"{file.parent.parent.name}/{file.name}" if file.parent.name == "export" else file.name
        with tempfile.TemporaryDirectory() as folder, busy_processes(args.busy):
            results[name] = compare(file, args.settings, args.rounds, args.seconds, Path(folder))
    content = {
        "clients": NUM_CLIENTS,
        "seconds": args.seconds,
        "settings": args.settings,
        "busy_processes": args.busy,
        "environment": describe_environment(),
    }
    content |= {"models": results}
    args.json.write_text(json.dumps(content, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
