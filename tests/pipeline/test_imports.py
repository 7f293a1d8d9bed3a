import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["progress", "schedule", "plan", "ledger", "table", "summary", "finished", "status"])
def test_bookkeeping_loads_neither_torch_nor_numba(module):
    script = f"import sys, maskmill.pipeline.{module}; print(*{{'torch', 'numba'}} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
