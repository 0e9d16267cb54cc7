"""What every stage stands on: errors, fingerprints, the cache, atomic files, devices and progress."""
