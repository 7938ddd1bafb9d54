"""`python -m shardwatt`: the same as the command `shardwatt`."""

from shardwatt.cli import main

main()
