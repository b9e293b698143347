"""Run an experiment with several seeds and print the lines for its header.

    IMAGO_DATA_DIR=data python benchmarks/experiment.py quickstart
    python benchmarks/experiment.py finetune_folder --override data.root=DIR --seeds 0 1 2 3 4

docs/results.py documents the fields of the header. Core-minutes are the user and system time of a whole run, data
workers included, in minutes: the mean over the seeds.
"""

import argparse

from paired import add_arguments, run_sides, store, summarize
from train_speed import PROJECT_ROOT, describe_environment


def header_lines(name: str, args: argparse.Namespace, figures: dict[str, float], num_test_images: int) -> list[str]:
    """Return the measured fields of a header; paths in the command are replaced by DIR."""
    seeds = ",".join(map(str, args.seeds))
    typed = [f"{text.partition('=')[0]}=DIR" if "=/" in text or "=~" in text else text for text in args.override]
    machine = describe_environment()
    commit = str(machine["git_commit"])
    typed_before = ["OMP_NUM_THREADS=1"] if machine["num_threads"] == 1 else []
    mean, lowest, highest = (f"{100 * figures[name]:.2f}" for name in ("mean", "lowest", "highest"))
    command = [*typed_before, "python src/train.py -m", f"experiment={name}", *typed, f"seed={seeds}"]
    threads = f"{machine['num_threads']} of {machine['num_cores']} cores"
    return [
        f"# command:       {' '.join(command)}",
        f"# hardware:      {threads} of an {machine['cpu_model']}, torch {machine['torch']}",
        f"# core-minutes:  {figures['core_minutes']:.2f}",
        f"# accuracy:      mean {mean} %, {lowest} to {highest} %, over n = {len(args.seeds)} seeds of "
        f"{num_test_images:,} images",
        f"# commit:        {commit[:7]}{'-dirty' * commit.endswith('-dirty')}, {str(machine['date'])[:10]}",
    ]


def main() -> None:
    """Run the experiment, store the results and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a file in configs/experiment")
    add_arguments(parser, "experiment")
    args = parser.parse_args()
    if args.json == parser.get_default("json"):
        args.json = PROJECT_ROOT / "benchmarks" / "results" / f"{args.name}.json"
    runs = run_sides({args.name: [f"experiment={args.name}"]}, args, "experiment")
    figures = summarize(runs, args.name)
    store(args.json, args, runs, experiment=args.name, **figures)
    print("\n".join(header_lines(args.name, args, figures, runs[0].num_test_images)))


if __name__ == "__main__":
    main()
