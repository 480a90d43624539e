"""Between API and Postgres: PgBouncer's pools, and HAProxy that finds the leader."""

from boards.panels import board, lines, log_lines, number, rate

HOSTS = 'host=~"$host"'

BOARD = board(
    "arches-pools",
    "Pools",
    "PgBouncer's pools, and HAProxy that finds the leader.",
    [
        [
            number("Clients waiting", "Clients that wait for a server connection now.", "short",
                   f"sum(pgbouncer_pools_client_waiting_connections{{{HOSTS}}})", bad_from=1),
            number("Longest wait", "How long the oldest waiting client has waited.", "s",
                   f"max(pgbouncer_pools_client_maxwait_seconds{{{HOSTS}}})", bad_from=1),
            number("PgBouncers up", "PgBouncers that answer their exporter.", "short",
                   f"sum(pgbouncer_up{{{HOSTS}}})", bad_below=1),
            number("Hosts without a leader", "Hosts whose HAProxy sees no Postgres leader.", "short",
                   f'count(haproxy_backend_active_servers{{proxy="leader",{HOSTS}}} == 0) or vector(0)', bad_from=1),
        ],
        [
            lines("Clients", "Client connections that are served and that wait.", "short",
                  (f"sum by (host) (pgbouncer_pools_client_active_connections{{{HOSTS}}})", "{{host}} active"),
                  (f"sum by (host) (pgbouncer_pools_client_waiting_connections{{{HOSTS}}})", "{{host}} waiting")),
            lines("Server connections", "Connections to Postgres by what they do.", "short",
                  (f"sum by (host) (pgbouncer_pools_server_active_connections{{{HOSTS}}})", "{{host}} active"),
                  (f"sum by (host) (pgbouncer_pools_server_idle_connections{{{HOSTS}}})", "{{host}} idle"),
                  (f"sum by (host) (pgbouncer_pools_server_used_connections{{{HOSTS}}})", "{{host}} used")),
            rate("Transactions", "Transactions per second through each PgBouncer.", "cps",
                 (f"pgbouncer_stats_sql_transactions_pooled_total{{{HOSTS}}}", "{{host}}"), by="host"),
        ],
        [
            lines("Time of a query", "Mean time of a query in Postgres, seen from PgBouncer.", "s",
                  (f"sum by (host) (rate(pgbouncer_stats_queries_duration_seconds_total{{{HOSTS}}}[$__rate_interval])) "
                   f"/ (sum by (host) (rate(pgbouncer_stats_queries_pooled_total{{{HOSTS}}}[$__rate_interval])) > 0)",
                   "{{host}}")),
            rate("Time spent waiting", "Seconds per second that clients wait for a server connection.", "short",
                 (f"pgbouncer_stats_client_wait_seconds_total{{{HOSTS}}}", "{{host}}"), by="host"),
            lines("HAProxy: members up", "1 where a host's HAProxy takes a member for the leader.", "short",
                  (f'haproxy_server_status{{proxy="leader",state="UP",{HOSTS}}}', "{{host}} -> {{server}}")),
            lines("HAProxy: sessions", "Sessions through the leader port.", "short",
                  (f'haproxy_backend_current_sessions{{proxy="leader",{HOSTS}}}', "{{host}}")),
        ],
        [log_lines("Log", "What PgBouncer and HAProxy wrote.", f'{{{HOSTS}, unit=~"(pgbouncer|haproxy).*"}}')],
    ],
    hosts="pgbouncer_exporter",
)  # fmt: skip
