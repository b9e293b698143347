"""Commands run as from a shell: exit codes, output, run directories, and that torch is not imported.

Each command runs in its own process, on a small config tree.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from warm_python import warm_hydra

from imago.cli.arguments import first_trial
from imago.cli.overrides import quote_paths
from imago.paths import PROJECT_ROOT

PROBE = """\
defaults:
  - main
  - paths: default
  - hydra: default
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
"""

COMMAND = """\
import json, os
from hydra.core.hydra_config import HydraConfig
from imago.errors import DataError
from imago.paths import job_output_dir

def run(cfg):
    settings = {"seed": cfg.seed, "root": cfg.data.root, "folder": str(job_output_dir())}
    print("RAN", json.dumps(settings | {"job": HydraConfig.get().job.name, "cwd": os.getcwd()}), flush=True)
    if cfg.seed == 13:
        return {}["a bug"]
    if cfg.seed == 14:
        raise ValueError("a bug of another kind")
    if cfg.seed == 15:
        return cfg.no_such_key
    if cfg.seed == 16:
        raise DataError("data.root=/x: no images")
    if cfg.seed == 18:
        print(os.environ.get("SLURM_NTASKS"), "tasks")
    if cfg.seed == 17:
        raise KeyboardInterrupt
    return 0.5
"""

# The line about imports is printed to stderr at exit, however the process ends.
TITLE_PAGE = """\
import atexit, sys
from pathlib import Path
sys.path[:0] = [{src!r}, {here!r}]
from imago.cli import entry
atexit.register(lambda: print("IMPORTED", *sorted({{"torch", "lightning"}} & set(sys.modules)), file=sys.stderr))
entry.COMMANDS["probe"] = "probe_command:run"
entry.CONFIG_DIR = Path({here!r}) / "configs"
entry.run_command("probe")
"""


@pytest.fixture(scope="module")
def project(config_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("project")
    shutil.copytree(config_dir, directory / "configs")
    (directory / "configs/probe.yaml").write_text(PROBE)
    for group in ("hydra", "paths"):
        shutil.copytree(PROJECT_ROOT / "configs" / group, directory / "configs" / group)
    paths = directory / "configs/paths/default.yaml"
    paths.write_text(re.sub(r"log_dir: \S+", f"log_dir: {directory}/logs", paths.read_text()))
    (directory / "probe_command.py").write_text(COMMAND)
    (directory / "probe.py").write_text(TITLE_PAGE.format(src=str(PROJECT_ROOT / "src"), here=str(directory)))
    return directory


def run(project, *arguments, cwd="/", **variables):
    """Return exit code, stdout and the lines of stderr; assert that torch was not imported."""
    done = warm_hydra().run(str(project / "probe.py"), *arguments, cwd=cwd, **variables)
    *errors, imported = done.stderr.splitlines()
    assert imported == "IMPORTED", done.stderr
    return done.returncode, done.stdout, errors


def test_a_command_has_its_own_directory_from_any_working_directory(project, tmp_path):
    code, out, errors = run(project, "optimizer.lr=1", "data.root=/a b/it's (1), [x]=~", cwd=tmp_path)
    assert (code, errors) == (0, [])
    assert """"seed": 0, "root": "/a b/it's (1), [x]=~",""" in out
    assert '"job": "probe"' in out
    assert f'"cwd": "{tmp_path}"' in out
    assert re.search(rf'"folder": "{project}/logs/probe/\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{{6}}"', out)
    assert list(tmp_path.iterdir()) == []


def test_run_name_names_the_directory_and_run_id_replaces_the_time(project):
    assert f"{project}/logs/probe/my run=1," in run(project, "run_name=my run=1,")[1]
    assert f'{project}/logs/probe/job7"' in run(project, RUN_ID="job7")[1]


def test_a_rank_started_by_lightning_shares_the_directory(project):
    folder = f'{project}/logs/probe/say "hi"'
    added = [f'hydra.run.dir="{folder}"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    code, out, _ = run(project, 'data.root="/a b"', *added, LOCAL_RANK="1", WORLD_SIZE="2")
    assert code == 0
    assert '/logs/probe/say \\"hi\\""' in out
    assert '"root": "/a b"' in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["data=folder"], "data.root has no value; type data.root=VALUE."),
        (["optimizer.lr=1,2"], "optimizer.lr=1,2: several values are a sweep"),
        (["seed=${nope}"], "seed: Interpolation key 'nope' not found"),
        (["data.root=${seed}"], "data.root=${seed}: a path cannot contain"),
        (["--lr", "3"], "unrecognized arguments: --lr"),
        (["--experiment=quickstart"], "unrecognized arguments: --experiment=quickstart"),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["-m", "model=small,resnet81"], "model=resnet81: there is no such option; model can be resnet18, resnet50"),
        (["--config-name", "nope"], "Cannot find primary config 'nope'"),
        (["seed=16"], "data.root=/x: no images"),
        (["hydra.run.dir=/proc/nope"], "[Errno "),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(project, arguments, line):
    code, _, errors = run(project, *arguments)
    assert code == 2
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"error: {line}")


def test_wrong_types_are_listed_together_and_leave_no_directory(project):
    code, out, errors = run(project, "seed=null", "optimizer.lr=abc", "run_name=typo")
    assert code == 2
    assert [error.split(":")[1] for error in errors] == [" seed=null", " optimizer.lr=abc"]
    assert "RAN" not in out
    assert not (project / "logs/probe/typo").exists()


@pytest.mark.parametrize(
    ("seed", "last_line"),
    [
        (13, "KeyError: 'a bug'"),
        (14, "ValueError: a bug of another kind"),
        (15, "omegaconf.errors.ConfigAttributeError"),
    ],
)
def test_a_bug_keeps_its_traceback_and_exit_code_1(project, seed, last_line):
    code, _, errors = run(project, f"seed={seed}")
    text = "\n".join(errors)
    assert code == 1
    assert "Traceback (most recent call last):" in text
    assert "probe_command.py" in text
    assert last_line in text


@pytest.mark.parametrize("arguments", [["seed=17"], ["-m", "seed=17,1"]])
@pytest.mark.slow
def test_ctrl_c_is_130_also_in_a_sweep(project, arguments):
    code, out, _ = run(project, *arguments)
    assert (code, out.count("RAN")) == (130, 1)


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK"])
def test_a_rank_without_world_size_or_above_it_is_refused_within_a_second(project, name: str):
    start = time.monotonic()
    for variables in ({name: "0"}, {name: "1", "WORLD_SIZE": "1"}):
        code, _, errors = run(project, **variables)
        assert code == 2
        assert f"{name}={variables[name]} is set in the environment" in errors[0]
    assert time.monotonic() - start < 2


def test_the_variable_that_disables_weights_only_is_refused(project):
    code, out, errors = run(project, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    assert (code, out, len(errors)) == (2, "", 1)
    assert "checkpoints could run code; unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in errors[0]


@pytest.mark.parametrize(("name", "key"), [("MAX_STEPS", "max_steps"), ("GRADIENT_CLIP_VAL", "gradient_clip_val")])
def test_a_variable_that_sets_an_argument_of_the_trainer_is_refused(project, name: str, key: str):
    code, out, errors = run(project, **{f"PL_TRAINER_{name}": "5"})
    assert (code, out, len(errors)) == (2, "", 1)
    assert f"PL_TRAINER_{name}=5 is set in the environment: type trainer.{key}=5, and unset" in errors[0]
    assert run(project, **{f"PL_TRAINER_{name}": ""})[0] == 0  # Lightning does not read an empty one


@pytest.mark.slow
def test_several_ranks_need_one_directory_name(project):
    slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    torchrun = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    assert [run(project, **ranks)[0] for ranks in (slurm, torchrun)] == [2, 2]
    assert run(project, "run_name=a", **slurm)[0] == 0
    assert run(project, **torchrun, RUN_ID="a")[0] == 0
    code, out, _ = run(project, "seed=18", SLURM_NTASKS="2")
    assert (code, "None tasks" in out) == (0, True)  # the batch script itself is not a rank, also for Lightning


@pytest.mark.slow
def test_a_failing_trial_does_not_stop_the_others(project):
    code, out, errors = run(project, "-m", "seed=16,1,abc", "sweep_name=sweep")
    assert code == 2
    assert re.findall(r"sweep/(\d)", out) == ["0", "1"]
    assert 'error: trial 0 (seed=16 sweep_name="sweep"): data.root=/x: no images' in errors
    assert any(error.startswith("error: trial 2 (seed=abc") for error in errors)
    assert errors[-1] == "error: 2 of 3 trials failed"
    assert "Traceback" not in "".join(errors)


@pytest.mark.slow
def test_a_sweep_with_a_bug_ends_with_exit_code_1_and_shows_the_traceback(project):
    code, out, errors = run(project, "-m", "seed=16,13,1")
    assert code == 1
    assert out.count("RAN") == 3
    assert "Traceback (most recent call last):" in errors
    assert any(error.startswith("error: trial 1 ") and "KeyError" in error for error in errors)


def test_help_shows_examples_groups_and_completion(project):
    out = run(project, "--help")[1]
    assert "python src/train.py -m optimizer.lr=1e-3,3e-3 seed=1,2" in out
    assert "model: resnet18, resnet50, small" in out
    assert 'eval "$(python src/train.py -sc install=bash)"' in out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("optimizer=", "optimizer=adamw optimizer=sgd"),
        ("model=resnet18 optimizer.l", "optimizer.lr="),
        ("seed=a{ op", ""),
    ],
)
def test_tab_completes_settings_and_options_and_never_writes_errors(project, typed, offered):
    code, out, errors = run(project, "-sc", "query=bash", COMP_LINE=f"python src/train.py {typed}")
    assert (code, out.strip(), errors) == (0, offered, [])


def test_a_python_without_the_packages_reports_make_setup():
    command = [sys.executable, "-S", "-c", "import imago.cli.entry as entry; entry.run_command('train')"]
    done = subprocess.run(command, cwd=PROJECT_ROOT / "src", capture_output=True, text=True)
    assert done.returncode == 2
    assert "make setup" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_examples_in_the_help_compose(compose):
    text = (PROJECT_ROOT / "configs/hydra/default.yaml").read_text()
    examples = re.findall(r"^ +python src/train\.py (\S.*?)(?:  .*)?$", text, re.MULTILINE)
    assert len(examples) > 4
    for example in examples:
        words = [word for word in shlex.split(example) if word != "-m" and not word.startswith("sweep")]
        compose(*first_trial(quote_paths(words), None))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "word", "offered"),
    [
        ("report", "tra", ""),
        ("report", "pa", "paths. paths="),
        ("train", "trainer=c", "trainer=cpu"),
        ("eval", "optimizer", ""),
    ],
)
def test_tab_offers_the_groups_of_the_command_only(command, script: str, word: str, offered: str):
    line = f"python src/{script}.py {word}"
    done = command(f"src/{script}.py", "-sc", "query=bash", COMP_LINE=line)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, offered, "")
