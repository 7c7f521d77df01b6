#!/bin/sh
# PrologSlurmctld of the cloud site: ends when every node of the job has booted.
# slurmctld looks at jobs whose nodes are booting every 30 s, and when this program ends: waiting
# here lets a job start as soon as its nodes are up. It always ends well: whether the nodes came up
# is slurmctld's to judge (ResumeTimeout).
# slurmctld's programs have no environment; Slurm's own variables are all that is here.
PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/opt/slurm/bin
export PATH
conf=$(dirname "$0")/slurm.conf
rounds=0
while [ "$rounds" -lt 3000 ]; do
    # CONFIGURING for as long as this program runs; anything else means that the job left
    job=$(SLURM_CONF=$conf squeue -h -j "$SLURM_JOB_ID" -o %T 2>/dev/null)
    [ "$job" = CONFIGURING ] || exit 0
    states=$(SLURM_CONF=$conf sinfo -h -N -n "$SLURM_JOB_NODELIST" -o %t 2>/dev/null)
    case $states in
        '' | *[~#%*]*) ;;
        *) exit 0 ;;
    esac
    rounds=$((rounds + 1))
    sleep 0.2
done
exit 0
