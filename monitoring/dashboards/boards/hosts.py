"""Hosts: utilisation, saturation and errors of processor, memory, disk and network."""

from boards.panels import board, lines, log_lines, log_rate, number, rate, rows

HOSTS = 'host=~"$host"'
DISK = f'{HOSTS},mountpoint="/"'

BOARD = board(
    "arches-hosts",
    "Hosts",
    "Utilisation, saturation and errors of each host. Local machines show their controller's processor and memory.",
    [
        [
            number("Hosts up", "Hosts that answer Prometheus.", "short", 'sum(up{job="node_exporter"})', bad_below=1),
            number("Units failed", "Units of systemd in the state failed.", "short",
                   f'sum(node_systemd_unit_state{{state="failed",{HOSTS}}}) or vector(0)', bad_from=1),
            number("Least disk free", "The smallest share of a root file system that is free.", "percentunit",
                   f"min(node_filesystem_avail_bytes{{{DISK}}} / node_filesystem_size_bytes)", bad_below=0.08),
            number("Clock off by at most", "The largest distance of a host's clock from its source.", "s",
                   f"max(abs(node_timex_offset_seconds{{{HOSTS}}}))", bad_from=0.05),
        ],
        [
            lines("Processor: used", "Share of processor time that is used.", "percentunit",
                  (f'1 - avg by (host) (rate(node_cpu_seconds_total{{mode="idle",{HOSTS}}}[$__rate_interval]))',
                   "{{host}}")),
            lines("Processor: waiting", "Load over one minute per core.", "short",
                  (f"node_load1{{{HOSTS}}} / on (host) count by (host) "
                   f'(node_cpu_seconds_total{{mode="idle",{HOSTS}}})', "{{host}}")),
        ],
        [
            lines("Memory: used", "Share of memory that is used.", "percentunit",
                  (f"1 - node_memory_MemAvailable_bytes{{{HOSTS}}} / node_memory_MemTotal_bytes", "{{host}}")),
            lines("Memory: swapped in", "Pages per second that had to come back from swap.", "cps",
                  (f"sum by (host) (rate(node_vmstat_pswpin{{{HOSTS}}}[$__rate_interval]))", "{{host}}")),
        ],
        [
            lines("Disk: used", "Share of the root file system that is used.", "percentunit",
                  (f"1 - node_filesystem_avail_bytes{{{DISK}}} / node_filesystem_size_bytes", "{{host}}")),
            lines("Disk: entries used", "Share of the root file system's entries that are used.", "percentunit",
                  (f"1 - node_filesystem_files_free{{{DISK}}} / node_filesystem_files", "{{host}}")),
        ],
        [
            rate("Network", "Bytes per second, received and sent.", "Bps",
                 (f'node_network_receive_bytes_total{{device!="lo",{HOSTS}}}', "{{host}}"), by="host"),
            lines("Network: errors", "Packets per second that were wrong or dropped.", "pps",
                  (f'sum by (host) (rate(node_network_receive_errs_total{{device!="lo",{HOSTS}}}[$__rate_interval]) '
                   f'+ rate(node_network_receive_drop_total{{device!="lo",{HOSTS}}}[$__rate_interval]))', "{{host}}")),
            lines("Open files", "File descriptors that are open.", "short",
                  (f"node_filefd_allocated{{{HOSTS}}}", "{{host}}")),
        ],
        [
            rows("Kernels", "Which kernel each host runs.", "short",
                 f"max by (host, release) (node_uname_info{{{HOSTS}}})"),
            log_rate("Log lines", "Lines per second by level.", f"{{{HOSTS}}}", "host, level"),
        ],
        [log_lines("Log", "What the hosts wrote.", f"{{{HOSTS}}}")],
    ],
    hosts="node_exporter",
)  # fmt: skip
