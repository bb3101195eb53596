"""The images of jobs: taken in, kept, decoded in a child, cut into tiles."""
