"""Is everything well? What a person opens first."""

from boards.panels import board, lines, number, rate, rows

BOARD = board(
    "arches-fleet",
    "Fleet",
    "Whether clients are served, who leads, what is firing.",
    [
        [
            number("Alerts firing", "Alerts that are firing now, the watchdog not counted.", "short",
                   'count(ALERTS{alertstate="firing",alertname!="Watchdog"}) or vector(0)', bad_from=1),
            number("Edge answers", "Edges whose address answers a request from outside.", "short",
                   'sum(probe_success{job="probe_edge"})', bad_below=1),
            number("Targets down", "Targets that Prometheus could not read at its last try.", "short",
                   "count(up == 0) or vector(0)", bad_from=1),
            number("Units failed", "Units of systemd in the state failed, on all hosts.", "short",
                   'sum(node_systemd_unit_state{state="failed"}) or vector(0)', bad_from=1),
        ],
        [
            number("Postgres leaders", "Members that hold the leader's lock: one, always.", "short",
                   "sum(patroni_primary)", bad_from=2),
            number("Postgres standbys", "Members that follow the leader.", "short", "sum(patroni_replica)",
                   bad_below=1),
            number("Redis leaders", "Redis servers that call themselves leader: one, always.", "short",
                   'count(redis_instance_info{role="master"})', bad_from=2),
            number("etcd members", "Members of etcd that know a leader.", "short", "sum(etcd_server_has_leader)",
                   bad_below=2),
        ],
        [
            lines("Requests at the edge by answer", "Requests per second that the edge answered, by class of status.",
                  "reqps", ("sum by (class) (label_replace(rate(edge_requests_total[$__rate_interval]), "
                            '"class", "${1}xx", "code", "(.).*"))', "{{class}}"), stacked=True),
            lines("Share of failed requests", "Answers with status 5xx of all answers of the edge.", "percentunit",
                  ('(sum(rate(edge_requests_total{code=~"5.."}[$__rate_interval])) or vector(0)) '
                   "/ (sum(rate(edge_requests_total[$__rate_interval])) > 0 or vector(1))", "5xx")),
        ],
        [
            lines("Processors", "Share of each host's processor time that is used.", "percentunit",
                  ('1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))', "{{host}}")),
            lines("Memory", "Share of each host's memory that is used.", "percentunit",
                  ("1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes", "{{host}}")),
            rate("Samples read", "Samples that Prometheus stores per second.", "cps",
                 ("prometheus_tsdb_head_samples_appended_total", "{{host}}"), by="host"),
        ],
        [rows("Targets", "Each job and host with the number of targets that answer.", "short",
              "sum by (job, host) (up)")],
    ],
)  # fmt: skip
