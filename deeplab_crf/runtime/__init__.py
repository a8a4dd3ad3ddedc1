"""What every other package uses: threads, devices, workspaces, files, checks of arguments. Imports nothing above it."""
