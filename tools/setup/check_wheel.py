"""Installs a wheel into an empty virtual environment in another folder and completes the example frame with it.

The dependencies are those of the Python that runs this; the package itself must come from the wheel, with its kernels.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import ammnet_sparse
from ammnet_sparse.ops import kernel_libraries
print(f"== {ammnet_sparse.__file__}")
for device, library in kernel_libraries().items():
    print(f"== {device} kernels: {'loaded from ' * library.is_loaded}{library.note}")
sys.exit(not kernel_libraries()["cpu"].is_loaded)
"""


def main(wheel: Path) -> None:
    if not wheel.name.endswith(".whl") or "-py3-none-manylinux" not in wheel.name:
        sys.exit(f"{wheel}: expected the one wheel of any Python, NAME-VERSION-py3-none-manylinux_....whl")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"

        def run(*arguments: str) -> None:
            subprocess.run([str(python), *arguments], cwd=folder, env=environment, check=True)

        run("-m", "pip", "install", "--quiet", "--no-deps", str(wheel.resolve()))
        packages = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        # Behind the environment's own packages; the editable install of this checkout is a .pth file, not followed.
        (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        run("-c", PROGRAM)
        frame = ROOT / "examples" / "frame"
        files = [f"--{name}={frame / file}" for name, file in (("color", "color.jpg"), ("depth", "depth.png"))]
        run("-m", "ammnet_sparse", "predict", "--out=completed", *files, f"--intrinsics={frame / 'intrinsics.txt'}")
        made = sorted(path.suffix for path in (folder / "completed").iterdir())
        if made != [".npz", ".png"]:
            sys.exit(f"{wheel.name}: expected a completed frame (.npz, .png), found {made}")
    print(f"== {wheel.name}, {wheel.stat().st_size / 1e6:.0f} MB: completed a frame in an empty environment")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_wheel.py WHEEL")
    main(Path(sys.argv[1]))
