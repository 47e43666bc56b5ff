"""The drops of `keyface bench stream --drops N`: a server of the user's own fails again and again."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from keyface.tools.bench_server import SERVER_DROPS, ServerCommand

if TYPE_CHECKING:
    from keyface.pipeline.chain import ChainParts


def server_of(command: str, url: str) -> ServerCommand:
    """A server by its command line. Raises UsageError: it is empty, or the URL is not RTSP on loopback."""
    return ServerCommand(shlex.split(command), url)


def measure_drops(
    url: str, command: str, n_drops: int, parts: ChainParts, *, seed: int, is_numbered: bool = False
) -> dict[str, Any]:
    """Runs the chain on a stream that fails `n_drops` times; see `DropRun.to_json`.

    Args:
        is_numbered: its pictures tell when they were sent, see `pipeline.faults.numbered`.
    """
    from keyface.pipeline.faults.drops import DropRun
    from keyface.pipeline.faults.numbered import age_of_frame_s
    from keyface.pipeline.live.address import parse_source
    from keyface.pipeline.live.run import LiveOptions, run_live
    from keyface.pipeline.live.sink import NullSink
    from keyface.pipeline.live.source import LiveSource, LiveSourceOptions

    with server_of(command, url) as server:
        source = LiveSource(parse_source(url), LiveSourceOptions(silence_s=1.0, open_timeout_s=2.0))
        age_of_s = age_of_frame_s if is_numbered else None
        drops = DropRun(source, server, n_drops=n_drops, kinds=SERVER_DROPS, age_of_s=age_of_s, seed=seed)
        run_live(source, [NullSink()], parts, LiveOptions(), on_tick=drops)
    return drops.to_json()
