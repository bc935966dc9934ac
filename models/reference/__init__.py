"""Reference samples: HMC in torch, readers of published files, and a cache on disk. `samples` is the front door."""
