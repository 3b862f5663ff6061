"""Files that machines without a common disk share, by URL: put there once, read through a bounded
cache on each machine."""
