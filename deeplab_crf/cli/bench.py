"""``deeplab-crf bench``: a quick timing of this machine."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import click

from deeplab_crf.benchmark.crf import Case, Report, find_peer, run_case
from deeplab_crf.cli.bench_conv import conv
from deeplab_crf.runtime.checks import MAX_THREADS, shown
from deeplab_crf.runtime.info import native_info
from deeplab_crf.runtime.threads import get_num_threads


def _parse_size(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[tuple[int, int]]:
    sizes = []
    for value in values:
        width, cross, height = value.lower().partition("x")
        if not (cross and width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
            raise click.BadParameter(f"{value!r} is not WIDTHxHEIGHT, such as 500x375")
        sizes.append((int(width), int(height)))
    return sizes


def _parse_threads(_context: click.Context, _option: click.Parameter, value: str) -> list[int]:
    counts = []
    for word in value.split(","):
        if word != "all" and not (word.isdecimal() and len(word) < 10 and 0 < int(word) <= MAX_THREADS):
            raise click.BadParameter(f"{shown(word)} is neither a positive number up to {MAX_THREADS} nor all")
        counts.append(get_num_threads() if word == "all" else int(word))
    return sorted(set(counts))


@click.group(invoke_without_command=True)
@click.option("--size", "sizes", multiple=True, default=["500x375"], show_default=True, callback=_parse_size,
              metavar="WxH", help="Picture size in pixels; may be repeated.")  # fmt: skip
@click.option("--classes", multiple=True, default=[21], show_default=True, type=click.IntRange(2),
              help="Number of classes; may be repeated.")  # fmt: skip
@click.option("--iterations", multiple=True, default=[10], show_default=True, type=click.IntRange(1),
              help="Mean field iterations; may be repeated.")  # fmt: skip
@click.option("--threads", default="1,all", show_default=True, callback=_parse_threads, help="Thread counts to time.")
@click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(1), help="Runs of each; medians are shown."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.pass_context
def bench(
    context: click.Context,
    sizes: list[tuple[int, int]],
    classes: tuple[int, ...],
    iterations: tuple[int, ...],
    threads: list[int],
    repeats: int,
    as_json: bool,
) -> None:
    """Time the CRF on the bundled photograph, lattice build and inference apart.

    Where pydensecrf or pydensecrf2 is installed, it runs the same input in turn, after its result was compared with
    ours. `deeplab-crf bench conv` times the convolutions.
    """
    if context.invoked_subcommand is not None:
        return
    peer = find_peer()
    reports = []
    if not as_json:
        click.echo("size      classes iterations  package      threads    build  inference    total  faster")
    for (width, height), labels, count in product(sizes, classes, iterations):
        report = run_case(Case(width, height, labels, count), threads=threads, repeats=repeats, peer=peer)
        reports.append(_as_dict(report))
        if not as_json:
            click.echo(_as_text(report))
    if as_json:
        click.echo(json.dumps({"native": native_info(), "repeats": repeats, "cases": reports}, indent=2))


bench.add_command(conv)


def _as_dict(report: Report) -> dict[str, Any]:
    case, agreement = report.case, report.agreement
    return {
        "width": case.width,
        "height": case.height,
        "classes": case.labels,
        "iterations": case.iterations,
        "agreement": None if agreement is None else {"equal_labels": agreement[0], "max_difference": agreement[1]},
        "timings": [timing.summary() | {"speedup": report.speedup(timing)} for timing in report.timings],
    }


def _as_text(report: Report) -> str:
    case = report.case
    lines = []
    for timing in report.timings:
        row, speedup = timing.summary(), report.speedup(timing)
        lines.append(
            f"{f'{case.width}x{case.height}':<9} {case.labels:>7} {case.iterations:>10}  "
            f"{timing.name:<12} {timing.threads:>7} "
            f"{row['build_ms']:>5.0f} ms {row['inference_ms']:>7.0f} ms {row['total_ms']:>5.0f} ms"
            + (f"  {speedup:.1f}x" if speedup is not None else "")
        )
    if report.agreement is None:
        lines.append("pydensecrf is not installed: nothing to compare with (pip install pydensecrf2)")
    else:
        lines.append(f"labels equal on {report.agreement[0]:.3%}, probabilities within {report.agreement[1]:.1e}")
    return "\n".join(lines)
