#!/bin/sh
# Makes the package's user. The service is enabled and started by whoever configures it, never by the package.
set -e
systemd-sysusers
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
