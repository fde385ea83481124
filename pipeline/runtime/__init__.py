"""What every room may use: files, threads, processes, progress, devices."""
