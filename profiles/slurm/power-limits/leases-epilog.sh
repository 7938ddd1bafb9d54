#!/bin/sh
# A Slurm Epilog (root, on each node of a job that has ended): sets back the power limits that the job has left.
# For sites with `power_limits: set_by: nvml` or `command`. See docs/power-caps.md.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
# The site's power_limits.leases, and shardwatt in an environment that belongs to root.
leases=/var/tmp/shardwatt-power-limits
shardwatt=/opt/shardwatt/bin/shardwatt

# A job that ended by itself has removed its leases, and a job without a cap never had one: nothing to start.
# Anybody can put files there, so that any of them may be a link to nowhere.
found=
for lease in "$leases"/*."$SLURM_JOB_ID".lease; do
    if [ -f "$lease" ]; then found=yes; fi
done
[ -n "$found" ] || exit 0
# A site that keeps a limit of its own on every GPU adds it: --watts 250.
timeout 60 "$shardwatt" restore-power-limits --leases "$leases" 2>&1 | logger -t shardwatt-power-limits
# Any other exit code would drain the node.
exit 0
