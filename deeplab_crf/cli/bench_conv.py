"""``deeplab-crf bench conv``: DeepLab's convolutions, ours against torch's."""

from __future__ import annotations

import importlib
import json

import click

from deeplab_crf.runtime.checks import MAX_THREADS

MODELS = ("v1-largefov", "v1-msc", "v2-vgg-aspp-s", "v2-vgg-aspp-l", "v2-resnet101")


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=["v1-largefov", "v2-resnet101"],
              show_default=True, help="Whose convolutions; may be repeated.")  # fmt: skip
@click.option("--size", default=321, show_default=True, type=click.IntRange(9), help="Network input, pixels a side.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Images.")
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1, MAX_THREADS), help="Threads of torch and of ours."
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Turns; the fastest is shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def conv(models: tuple[str, ...], size: int, batch: int, threads: int, repeats: int, as_json: bool) -> None:
    """Time every distinct convolution of DeepLab networks against torch.

    For each: the algorithm that was chosen, and milliseconds with the bias, residual and ReLU that the network has behind it, of
    torch in both layouts and of ours in channels_last. Results are compared before anything is timed.
    """
    try:
        benchmark = importlib.import_module("deeplab_crf.benchmark.conv")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError('bench conv needs torch, which is not installed: pip install "deeplab-crf[torch]"') from error
    rows = []
    if not as_json:
        click.echo(
            "convolution           channels    kernel rate  map      algorithm  torch NCHW  torch NHWC      ours  faster"
        )
    for case in benchmark.distinct_cases(models, size, size):
        result = benchmark.run_case(case, batch=batch, threads=threads, repeats=repeats)
        times = [
            1e3 * result.best(who, layout, True)
            for who, layout in (("torch", "NCHW"), ("torch", "channels_last"), ("ours", "channels_last"))
        ]
        if as_json:
            names = ("torch_nchw_ms", "torch_channels_last_ms", "ours_ms")
            rows.append(
                {"name": case.name, "channels": case.channels, "filters": case.filters, "kernel": case.kernel,
                 "rates": case.rates, "height": case.height, "width": case.width, "algorithm": result.algorithm,
                 "difference": result.difference, "speedup": result.speedup(True)}
                | dict(zip(names, times, strict=True))
            )  # fmt: skip
            continue
        rates = "+".join(map(str, case.rates))
        click.echo(
            f"{case.name:<19} {f'{case.channels} -> {case.filters}':>12} {f'{case.kernel}x{case.kernel}':>8} {rates:>6} "
            f"{f'{case.height}x{case.width}':<9} {result.algorithm:<9} "
            + " ".join(f"{milliseconds:>8.2f} ms" for milliseconds in times)
            + f"  {result.speedup(True):.2f}x"
        )
    if as_json:
        click.echo(
            json.dumps({"size": size, "batch": batch, "threads": threads, "repeats": repeats, "cases": rows}, indent=2)
        )
