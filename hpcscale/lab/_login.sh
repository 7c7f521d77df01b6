#!/bin/sh
# What sshd of the cloud site runs instead of the command that was asked for (ForceCommand): the
# command itself, unless `hpcscale lab fault ssh-cut` left a token; then the connection breaks.
# Each token is used once, by whoever wins the rename.
here=$(dirname "$0")
faults=$here/../run/ssh-cut
shell=${SHELL:-/bin/sh}
command=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND
if [ -z "$command" ]; then
    exec "$shell" -l
fi
cut_connection() {
    # root's sessions have one sshd process, other users' a second, privileged one above it
    above=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$PPID/status")
    case $(tr '\0' ' ' <"/proc/$above/cmdline") in
        *'[priv]'*) ;;
        *) above= ;;
    esac
    # shellcheck disable=SC2086  # nothing at all when there is no process above
    kill -"$1" $above "$PPID"
}
for token in "$faults"/token.*; do
    [ -f "$token" ] || continue
    { read -r mode && read -r pattern; } <"$token"
    case $command in
        *"$pattern"*) ;;
        *) continue ;;
    esac
    case $mode:$command in
        # a file transfer is a dialogue: there is no one request to let through
        after:*sftp-server*) mode=before ;;
    esac
    mv "$token" "$faults/used.$$" 2>/dev/null || continue
    case $mode in
        before) cut_connection KILL ;;
        after | hang)
            "$shell" -c "$command" >"$faults/reply.$$" 2>&1
            echo "rc $? after: $command" >>"$faults/cut.log"
            if [ "$mode" = hang ]; then
                # a stopped sshd does not notice that the command has ended
                cut_connection STOP
            else
                cut_connection KILL
            fi
            ;;
    esac
    exit 255
done
exec "$shell" -c "$command"
