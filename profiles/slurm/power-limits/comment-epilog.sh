#!/bin/sh
# A Slurm Epilog (root, on each node of a job that has ended): sets back what comment-prolog.sh has set.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
notes=/run/shardwatt-power-limits

note=$notes/$SLURM_JOB_ID
[ -f "$note" ] || exit 0
is_back=yes
while IFS=', ' read -r gpu watts; do
    said=$(nvidia-smi -i "$gpu" -pl "${watts%.*}" 2>&1 </dev/null) || {
        is_back=no
        logger -t shardwatt-power-limits "job $SLURM_JOB_ID: GPU $gpu is not back at $watts W: $said"
    }
done <"$note"
[ "$is_back" = yes ] && rm -f "$note"
# Any other exit code would drain the node.
exit 0
