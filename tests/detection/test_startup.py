"""What a detector does without is not loaded: a program that judges pictures starts fast."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNUSED = {"matplotlib", "sklearn", "skimage", "pandas"}


def test_importing_detection_loads_no_package_that_it_does_without():
    code = f"import sys, detection; print(*sorted({UNUSED} & {{name.partition('.')[0] for name in sys.modules}}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
