#!/bin/sh
# Last step of the image build; $1 is the image's root. Runs outside of it.
set -eu
root=$1
here=$(dirname "$0")

cp -rT "$here/files" "$root"
chmod 0440 "$root/etc/sudoers.d/ops"
chroot "$root" useradd --create-home --shell /bin/bash ops
install -d -m 0700 "$root/home/ops/.ssh"
chroot "$root" chown -R ops:ops /home/ops/.ssh

# Timers that would take apt's lock at a moment of their own choosing.
systemctl --root "$root" mask apt-daily.timer apt-daily-upgrade.timer
systemctl --root "$root" enable systemd-networkd.service
systemctl --root "$root" disable systemd-networkd-wait-online.service

# Each machine gets its own identity when it is made.
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/machine-id" "$root/var/lib/dbus/machine-id" \
    "$root/etc/hostname" "$root/etc/resolv.conf"

# Newer than /usr: the first boot skips ldconfig, sysusers and the like.
touch "$root/etc/.updated" "$root/var/.updated"
