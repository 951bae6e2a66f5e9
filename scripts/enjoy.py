"""Watch a saved agent: a video of an episode, beside it what its model imagined.

Needs no screen: MuJoCo draws through EGL or OSMesa (MUJOCO_GL says which).
"""

from __future__ import annotations

from collections.abc import Mapping

from options.enjoy import Args

from mbrl_bilevel.studies.launching import launch_tool


def main(args: Args) -> Mapping[str, object]:
    """Load the agent, let it act, write the video."""
    from work.enjoy import enjoy  # once the options are read: it brings in PyTorch

    return enjoy(args)


if __name__ == "__main__":
    launch_tool(Args, main)
