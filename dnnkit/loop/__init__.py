"""The chunked epoch loop: Lightning's own, with its bookkeeping paid once per K minibatches."""

from dnnkit.loop.epoch import ChunkedEpochLoop, engine_report, use_chunks

__all__ = ["ChunkedEpochLoop", "engine_report", "use_chunks"]
