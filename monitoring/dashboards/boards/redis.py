"""Redis and the Sentinels that watch it."""

from boards.panels import board, lines, log_lines, number, rate

HOSTS = 'host=~"$host"'

BOARD = board(
    "arches-redis",
    "Redis",
    "Who leads, what is in memory, whether it reaches the disk, and what the Sentinels see.",
    [
        [
            number("Leaders", "Servers that call themselves leader: one, always.", "short",
                   'count(redis_instance_info{role="master"})', bad_from=2),
            number("Replicas", "Replicas that are connected to the leader.", "short", "max(redis_connected_slaves)",
                   bad_below=1),
            number("Sentinels", "Sentinels that agree that they can be reached, the fewest that one of them sees.",
                   "short", "min(redis_sentinel_master_ok_sentinels)", bad_below=2),
            number("Saved", "Servers whose last write to the append-only file worked.", "short",
                   "sum(redis_aof_last_write_status)", bad_below=1),
        ],
        [
            lines("Memory", "Memory of data, and the most that may be used.", "bytes",
                  (f"redis_memory_used_bytes{{{HOSTS}}}", "{{host}}"),
                  (f"redis_memory_max_bytes{{{HOSTS}}}", "{{host}} limit")),
            rate("Commands", "Commands per second that each server carried out.", "ops",
                 (f"redis_commands_processed_total{{{HOSTS}}}", "{{host}}"), by="host"),
            lines("Clients", "Clients that are connected, the Sentinels among them.", "short",
                  (f"redis_connected_clients{{{HOSTS}}}", "{{host}}")),
        ],
        [
            lines("Found", "Share of look-ups that found their key.", "percentunit",
                  (f"rate(redis_keyspace_hits_total{{{HOSTS}}}[$__rate_interval]) / "
                   f"(rate(redis_keyspace_hits_total{{{HOSTS}}}[$__rate_interval]) + "
                   f"rate(redis_keyspace_misses_total{{{HOSTS}}}[$__rate_interval]) > 0 or "
                   f"rate(redis_keyspace_hits_total{{{HOSTS}}}[$__rate_interval]) + 1)", "{{host}}")),
            rate("Evicted and expired", "Keys per second that had to go for want of memory, or whose time was over.",
                 "cps", (f"redis_evicted_keys_total{{{HOSTS}}}", "{{host}} evicted"),
                 (f"redis_expired_keys_total{{{HOSTS}}}", "{{host}} expired"), by="host"),
            lines("Keys", "Keys that are stored, by database.", "short",
                  (f"redis_db_keys{{{HOSTS}}} > 0", "{{host}} {{db}}")),
            lines("Replication", "How far each replica is behind the leader.", "bytes",
                  ("max(redis_master_repl_offset) - min by (host) (redis_master_repl_offset)", "{{host}}")),
        ],
        [log_lines("Log", "What Redis and Sentinel wrote.", f'{{{HOSTS}, unit=~"redis.*"}}')],
    ],
    hosts="redis_exporter",
)  # fmt: skip
