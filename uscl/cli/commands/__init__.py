"""The small tools of the command line, one file each: what they take, check and print."""
