"""What every process of ours stands on: clocks, errors, logs, children, and no word of jobs or models."""
