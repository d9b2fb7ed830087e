"""`python -m benchmarks run SUITE [--case NAME] [--check]`, `check`, `tables`."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks import baseline, runner, tables
from benchmarks.case import Case
from benchmarks.cases import chain, cpu, peers, peers_sd15, plan, world
from benchmarks.gpu.rows import rows
from benchmarks.gpu.run import run_suite
from memdiff.errors import ConfigError

SUITES: Mapping[str, Callable[[], list[Case]]] = {
    "cpu": cpu.cases,
    "chain": chain.cases,
    "world": world.cases,
    "plan": plan.cases,
    "gpu": lambda: [row.case() for row in rows()],
    "peers": peers.cases,
    "peers_sd15": peers_sd15.cases,
}


def main(words: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 1 where a case failed or got worse than its baseline, 2 for a mistake."""
    options = _parser().parse_args(words)
    match options.command:
        case "run":
            return _run(options)
        case "check":
            measured = [name for name in SUITES if (runner.RESULTS / f"{name}.jsonl").is_file()]
            return _check(options.suites or measured, runner.RESULTS, options.against)
        case _:
            tables.write_all()
    return 0


def _run(options: argparse.Namespace) -> int:
    every = SUITES[options.suite]()
    chosen = [case for case in every if not options.case or any(fnmatchcase(case.name, one) for one in options.case)]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        print(f"no case of {options.suite} matches {options.case}; --list shows them", file=sys.stderr)
        return 2
    if options.threads:
        chosen = [replace(case, threads=options.threads) for case in chosen]
    if options.suite == "gpu":
        return _run_gpu(options, {case.name for case in chosen})
    file, order = options.results / f"{options.suite}.jsonl", [case.name for case in every]
    rows = runner.run_cases(
        chosen,
        repeats=options.repeats,
        say=lambda line: print(line, flush=True),
        done=lambda rows: runner.keep(file, rows, order),
    )
    if options.results == runner.RESULTS:
        tables.write_all()
    if any(row["outcome"] == "failed" for row in rows):
        return 1
    if not options.check:
        return 0
    return _check([options.suite], options.results, options.against, {case.name for case in chosen})


def _run_gpu(options: argparse.Namespace, names: set[str]) -> int:
    """Within its minutes, in processes of its own; a dry run's rows never lie with a card's."""
    results = options.results
    if options.dry_run and results == runner.RESULTS:
        results = runner.ROOT / ".cache" / "gpu_dry_run"
    file, every = results / "gpu.jsonl", rows(dry=options.dry_run)
    try:
        known = run_suite(
            [row for row in every if row.name in names],
            minutes=options.minutes,
            dry=options.dry_run,
            say=lambda line: print(line, flush=True),
            done=lambda so_far: runner.keep(file, so_far, [row.name for row in every]),
            profiles=options.profiles,
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if results == runner.RESULTS:
        tables.write_all()
    else:
        print(tables.gpu_table(known))
    return int(any(row["outcome"] == "failed" for row in known))


def _check(suites: Sequence[str], results: Path, against: str, only: set[str] | None = None) -> int:
    worse = False
    for suite in suites:
        if suite not in SUITES:
            print(f"no suite {suite}; there are {', '.join(SUITES)}", file=sys.stderr)
            return 2
        rows = runner.read_rows(results / f"{suite}.jsonl")
        stored = runner.committed_rows(suite, against)
        if only is not None:
            rows, stored = ([row for row in some if row["case"] in only] for some in (rows, stored))
        findings = baseline.compare(rows, stored)
        print(baseline.report(suite, findings))
        worse = worse or baseline.failed(findings)
    return int(worse)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure a suite: results/SUITE.jsonl and the tables")
    run.add_argument("suite", choices=SUITES)
    run.add_argument("--case", action="append", metavar="NAME", help="only these; * matches anything")
    run.add_argument("--repeats", type=int, default=1, help="go through the cases so often; seconds are of all runs")
    run.add_argument("--check", action="store_true", help="then compare with what is committed")
    run.add_argument("--against", default="HEAD", metavar="COMMIT", help="whose results; default: HEAD")
    run.add_argument("--threads", type=int, help="in the place of the cases' own")
    run.add_argument("--results", type=Path, default=runner.RESULTS, help="elsewhere: the tables are left alone")
    run.add_argument("--minutes", type=float, default=7.0, help="suite gpu: what does not fit is left out, by name")
    run.add_argument("--dry-run", action="store_true", help="suite gpu: on the CPU, with the embedded models")
    run.add_argument(
        "--profiles", type=Path, metavar="FOLDER", help="suite gpu: traces of memdiff's rows, for a browser"
    )
    run.add_argument("--list", action="store_true", help="name the cases and stop")
    check = commands.add_parser("check", help="compare results with those of a commit")
    check.add_argument("suites", nargs="*", help=f"default: all that have results, of {', '.join(SUITES)}")
    check.add_argument("--against", default="HEAD", metavar="COMMIT", help="default: HEAD")
    commands.add_parser("tables", help="write the tables and pictures of the README again from the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
