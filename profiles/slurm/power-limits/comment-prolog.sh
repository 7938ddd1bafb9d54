#!/bin/sh
# A Slurm Prolog (root, on each node of a job before it starts): sets the power limit that the job's comment
# names, as in `…_cap=175_repeat=1`, on the job's GPUs. For sites with `power_limits: set_by: prolog`;
# comment-epilog.sh sets it back. See docs/power-caps.md.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
notes=/run/shardwatt-power-limits

say() { logger -t shardwatt-power-limits "job $SLURM_JOB_ID: $*"; }

# The job's GPUs on this node, as Slurm numbers them; without GPUs from Slurm there is nothing to set.
case ${SLURM_JOB_GPUS:-} in '' | *[!0-9,]*) exit 0 ;; esac
comment=${SLURM_JOB_COMMENT:-}
if [ -z "$comment" ]; then
    # Where Slurm does not hand it to prologs.
    comment=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Comment=//p')
fi
# A comment is the user's to write: nothing but a number of one to four digits is taken from it.
watts=$(printf '%s\n' "$comment" | sed -nE '1s/^(.*[ _/])?cap=([1-9][0-9]{0,3})([ _/].*)?$/\2/p')
[ -n "$watts" ] || exit 0

# What was found is remembered until the node starts again, which no limit outlives.
mkdir -p "$notes" && chmod 755 "$notes"
note=$notes/$SLURM_JOB_ID
if ! nvidia-smi -i "$SLURM_JOB_GPUS" --query-gpu=index,power.limit --format=csv,noheader,nounits >"$note.new"; then
    rm -f "$note.new"
    say "the power limits of GPUs $SLURM_JOB_GPUS cannot be read; none is set"
    exit 0
fi
# A job that was put back into the queue may find its own cap: of each GPU the first note counts.
while IFS= read -r line; do
    grep -q "^${line%%,*}," "$note" 2>/dev/null || printf '%s\n' "$line" >>"$note"
done <"$note.new"
rm -f "$note.new"
# One that is out of range is refused, and then by the cell too, which reads it back.
said=$(nvidia-smi -i "$SLURM_JOB_GPUS" -pl "$watts" 2>&1) || say "$watts W were refused: $said"
exit 0
