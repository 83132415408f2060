"""The whole graph under shared-prefix conversations, once per policy: `python -m benchmarks.serving`.

Starts a Ray cluster of its own and deploys the graph again for each policy and round, so that every run
starts with empty caches; all runs have the same conversations. Progress goes to stderr; stdout gets a table,
then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

import httpx

from app.errors import ConfigError, KvbeaconError
from benchmarks.serving.client import RequestFailedError
from benchmarks.serving.options import parse_options
from benchmarks.serving.plan import Plan, make_plan
from benchmarks.serving.run import Report, describe, run_plan
from benchmarks.serving.summary import table


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    options = parse_options(parser)
    try:
        plan = make_plan(options)
        settings = describe(plan)
        report = run_plan(plan)
    except ConfigError as error:
        parser.error(str(error))
    except (KvbeaconError, RequestFailedError, httpx.HTTPError, TimeoutError) as error:
        sys.exit(f"benchmarks.serving failed: {error!r}")
    except KeyboardInterrupt:
        sys.exit("benchmarks.serving: interrupted")
    print(_readable(plan, report))
    policies = {name: asdict(summary) for name, summary in report.policies.items()}
    print(json.dumps({"policies": policies, **report.overhead, **settings}))


def _readable(plan: Plan, report: Report) -> str:
    shape, config, overhead = plan.options.shape, plan.config, report.overhead
    return (
        f"{shape.num_requests} requests: {shape.system_prompts} system prompts x {shape.users} users x "
        f"{shape.turns} turns. The conversations need {plan.needed_blocks} KV blocks in all; each of "
        f"{config.dp_size} ranks has {config.engine.cache.num_blocks or 'what memory allows'}.\n\n"
        f"{table(report.policies)}\n\n"
        f"unloaded time to first token: {overhead['http_ttft_ms']:.1f} ms over HTTP, "
        f"{overhead['engine_ttft_ms']:.1f} ms in the engine alone: "
        f"overhead {overhead['overhead_ms']:.1f} ms\n"
    )


if __name__ == "__main__":
    main()
