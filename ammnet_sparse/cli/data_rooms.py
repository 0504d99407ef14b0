"""Generates synthetic rooms in the layout of the published data.

    python tools/make_rooms.py data/my_rooms --frames 1000 --validation-frames 100

Training makes its own rooms on first use; this is for sets of other sizes, or to make them beforehand.
"""

import argparse
from pathlib import Path

from ammnet_sparse.config import SyntheticConfig
from ammnet_sparse.data.synthetic.generate import RoomsError, generate_rooms


def main() -> None:
    defaults = SyntheticConfig()
    parser = argparse.ArgumentParser(
        description="Generates synthetic rooms in the layout of the published data. An interrupted run goes on where "
        "it stopped when it is started again with the same parameters."
    )
    parser.add_argument("folder", type=Path, help="folder of the set; must not hold anything else")
    parser.add_argument("--frames", type=int, default=defaults.frames, help="validation frames included (%(default)s)")
    parser.add_argument(
        "--validation-frames", type=int, default=defaults.validation_frames, help="frames of val.txt (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="same seed, same files (%(default)s)")
    parser.add_argument("--noise", choices=("none", "kinect"), default=defaults.noise, help="of depth (%(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes (one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    try:
        folder = generate_rooms(
            arguments.folder,
            frames=arguments.frames,
            validation_frames=arguments.validation_frames,
            seed=arguments.seed,
            noise=arguments.noise,
            workers=arguments.workers,
            progress=not arguments.quiet,
        )
    except (ValueError, RoomsError) as error:
        parser.error(str(error))
    print(f"{arguments.frames} frames in {folder}")


if __name__ == "__main__":
    main()
