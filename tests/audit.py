"""`make audit`: asks the Python advisory database for known vulnerabilities of everything that constraints.txt pins.

Without a network it says so and ends well: what is pinned was audited when it was pinned, and a check must work
everywhere. What is found ends it with 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
COMMAND = ("-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")


def main() -> int:
    """Print what was found; the exit code."""
    command = [sys.executable, *COMMAND, "--requirement", str(CONSTRAINTS)]
    asked = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        lines = asked.stderr.strip().splitlines() or ["no answer"]
        return _skipped(lines[-1][:200])
    known = [package for package in packages if "vulns" in package]
    if not known:
        return _skipped("the service that was reached knows none of the packages")
    return _report(known, len(packages))


def _skipped(reason: str) -> int:
    print(f"audit skipped: no network, nothing was checked ({reason})")
    return 0


def _report(known: list[dict[str, Any]], pinned: int) -> int:
    found = [(package, each) for package in known for each in package["vulns"]]
    for package, each in found:
        fixed = ", ".join(each.get("fix_versions", ())) or "none yet"
        print(f"{package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    print(f"audit: {len(known)} of {pinned} pinned packages checked, {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
