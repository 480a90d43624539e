"""Postgres and Patroni: who leads, how far behind the others are, what the database does; and etcd under it."""

from boards.panels import board, lines, log_lines, number, quantiles, rate

HOSTS = 'host=~"$host"'

BOARD = board(
    "arches-postgres",
    "Postgres",
    "Who leads, how far behind the others are, what the database does, and etcd under it.",
    [
        [
            number("Leaders", "Members that hold the leader's lock: one, always.", "short", "sum(patroni_primary)",
                   bad_from=2),
            number("Synchronous standbys", "Members whose confirmation a commit waits for.", "short",
                   "sum(patroni_sync_standby) + (sum(patroni_quorum_standby) or vector(0))", bad_below=1),
            number("Running", "Members whose Postgres runs.", "short", "sum(patroni_postgres_running)", bad_below=1),
            number("Connections used", "Share of the leader's connections that are taken.", "percentunit",
                   "max(sum by (host) (pg_stat_activity_count) / on (host) "
                   "max by (host) (pg_settings_max_connections))",
                   bad_from=0.8),
        ],
        [
            lines("Roles", "1 where a member leads.", "short", (f"patroni_primary{{{HOSTS}}}", "{{host}}")),
            lines("Replication lag", "Age of the last transaction that a standby has replayed.", "s",
                  (f"pg_replication_lag_seconds{{{HOSTS}}}", "{{host}}")),
            lines("Not yet replayed", "Distance between what a standby received and what it replayed.", "bytes",
                  (f"patroni_xlog_received_location{{{HOSTS}}} - patroni_xlog_replayed_location", "{{host}}")),
            lines("Timeline", "Timeline of each member: one more after each change of the leader.", "short",
                  (f"patroni_postgres_timeline{{{HOSTS}}}", "{{host}}")),
        ],
        [
            rate("Transactions", "Commits per second by database.", "cps",
                 (f'pg_stat_database_xact_commit{{{HOSTS},datname!~"template.*"}}', "{{host}} {{datname}}"),
                 by="host, datname"),
            rate("Rolled back", "Transactions per second that were rolled back.", "cps",
                 (f'pg_stat_database_xact_rollback{{{HOSTS},datname!~"template.*"}}', "{{host}} {{datname}}"),
                 by="host, datname"),
            lines("Sessions", "Sessions by what they do.", "short",
                  (f"sum by (host, state) (pg_stat_activity_count{{{HOSTS}}})", "{{host}} {{state}}")),
            lines("Oldest transaction", "Age of the oldest open transaction.", "s",
                  (f"max by (host) (pg_stat_activity_max_tx_duration{{{HOSTS}}})", "{{host}}")),
        ],
        [
            lines("Found in memory", "Share of block reads that shared buffers answered.", "percentunit",
                  (f"sum by (host) (rate(pg_stat_database_blks_hit{{{HOSTS}}}[$__rate_interval])) / "
                   f"(sum by (host) (rate(pg_stat_database_blks_hit{{{HOSTS}}}[$__rate_interval])) + "
                   f"sum by (host) (rate(pg_stat_database_blks_read{{{HOSTS}}}[$__rate_interval])) > 0)",
                   "{{host}}")),
            lines("Size", "Size of each database.", "bytes",
                  (f'pg_database_size_bytes{{{HOSTS},datname!~"template.*"}}', "{{host}} {{datname}}")),
            lines("Dead rows", "Rows that autovacuum has still to remove, the five largest tables.", "short",
                  (f"topk(5, pg_stat_user_tables_n_dead_tup{{{HOSTS}}})", "{{host}} {{relname}}")),
            lines("Way to the wraparound", "Transactions since the oldest row that is not yet frozen.", "short",
                  (f"max by (host) (pg_database_wraparound_age_datfrozenxid_seconds{{{HOSTS}}})", "{{host}}")),
        ],
        [
            lines("etcd knows a leader", "1 where a member of etcd knows a leader.", "short",
                  (f"etcd_server_has_leader{{{HOSTS}}}", "{{host}}")),
            quantiles("etcd: time to disk", "Time that etcd's log takes to reach the disk.", "s",
                      f"etcd_disk_wal_fsync_duration_seconds_bucket{{{HOSTS}}}", by="host"),
            lines("etcd: size", "Size of etcd's database, and of what may be in it.", "bytes",
                  (f"etcd_mvcc_db_total_size_in_bytes{{{HOSTS}}}", "{{host}}"),
                  (f"etcd_server_quota_backend_bytes{{{HOSTS}}}", "{{host}} limit")),
            rate("etcd: changes of the leader", "Leaders per second; zero is the normal state.", "cps",
                 (f"etcd_server_leader_changes_seen_total{{{HOSTS}}}", "{{host}}"), by="host"),
        ],
        [log_lines("Log", "What Patroni and Postgres wrote.", f'{{{HOSTS}, unit=~"(patroni|postgres).*"}}')],
    ],
    hosts="postgres_exporter",
)  # fmt: skip
