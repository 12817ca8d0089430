"""Section "calibrate": the speed of this machine, as `python -m dmray.doctor --calibrate` measures it, for `--plan`.

In `calibration` of the result is the content of a file for dmray/planning/hardware.
"""

from __future__ import annotations

from typing import Any

from section import SMALL, Section, section_from_options

from dmray.planning import measuring


def main() -> None:
    section = section_from_options(__doc__)
    section.measure("calibration", lambda: calibrate(section), needs_s=1 if section.toy else 140)


def calibrate(section: Section) -> dict[str, Any]:
    """Without simulators that are not installed; on a busy machine too, which the calibration then says."""
    if section.toy:
        measuring.SIZES = (SMALL,)
    found = measuring.calibrate(lambda line: print(line, flush=True), 0.02 if section.toy else 0.6, force=True)
    return {"calibration": found.model_dump(mode="json")}


if __name__ == "__main__":
    main()
