#!/bin/sh
# TaskProlog of a lab that is not root's. sbatch --export=NONE gives a job its user's login
# environment, which only a slurmd that is root can ask for: what is missing of it is set here.
missing() { ! /usr/bin/env | /usr/bin/grep -q "^$1="; }
missing PATH && echo "export PATH=/usr/local/bin:/usr/bin:/bin"
name=$(/usr/bin/id -un)
missing USER && echo "export USER=$name"
missing LOGNAME && echo "export LOGNAME=$name"
missing SHELL && echo "export SHELL=/bin/bash"
home=$(/usr/bin/getent passwd "$name" | /usr/bin/cut -d: -f6)
missing HOME && echo "export HOME=$home"
exit 0
