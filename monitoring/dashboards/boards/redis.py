"""Redis and the Sentinels that watch it."""

from boards.panels import board, lines, log_lines, number, rate

HOSTS = 'host=~"$host"'
# The Sentinels have an exporter of their own, which tells of a Redis of sorts, too.
SERVERS = f'job="redis_exporter",{HOSTS}'

BOARD = board(
    "arches-redis",
    "Redis",
    "Who leads, what is in memory, whether it reaches the disk, and what the Sentinels see.",
    [
        [
            number("Leaders", "Servers that call themselves leader: one, always.", "short",
                   'count(redis_instance_info{role="master"})', bad_from=2),
            number("Replicas", "Replicas that are connected to the leader.", "short",
                   'max(redis_connected_slaves{job="redis_exporter"})',
                   bad_below=1),
            number("Sentinels", "Sentinels that agree that they can be reached, the fewest that one of them sees.",
                   "short", "min(redis_sentinel_master_ok_sentinels)", bad_below=2),
            number("Saved", "Servers whose last write to the append-only file worked.", "short",
                   'sum(redis_aof_last_write_status{job="redis_exporter"})', bad_below=1),
        ],
        [
            lines("Memory", "Memory of data, and the most that may be used.", "bytes",
                  (f"redis_memory_used_bytes{{{SERVERS}}}", "{{host}}"),
                  (f"redis_memory_max_bytes{{{SERVERS}}}", "{{host}} limit")),
            rate("Commands", "Commands per second that each server carried out.", "ops",
                 (f"redis_commands_processed_total{{{SERVERS}}}", "{{host}}"), by="host"),
            lines("Clients", "Clients that are connected, the Sentinels among them.", "short",
                  (f"redis_connected_clients{{{SERVERS}}}", "{{host}}")),
        ],
        [
            lines("Found", "Share of look-ups that found their key.", "percentunit",
                  (f"rate(redis_keyspace_hits_total{{{SERVERS}}}[$__rate_interval]) / "
                   f"(rate(redis_keyspace_hits_total{{{SERVERS}}}[$__rate_interval]) + "
                   f"rate(redis_keyspace_misses_total{{{SERVERS}}}[$__rate_interval]) > 0 or "
                   f"rate(redis_keyspace_hits_total{{{SERVERS}}}[$__rate_interval]) + 1)", "{{host}}")),
            rate("Evicted and expired", "Keys per second that had to go for want of memory, or whose time was over.",
                 "cps", (f"redis_evicted_keys_total{{{SERVERS}}}", "{{host}} evicted"),
                 (f"redis_expired_keys_total{{{SERVERS}}}", "{{host}} expired"), by="host"),
            lines("Keys", "Keys that are stored, by database.", "short",
                  (f"redis_db_keys{{{SERVERS}}} > 0", "{{host}} {{db}}")),
            lines("Replication", "How far each replica is behind the leader.", "bytes",
                  ('scalar(max(redis_master_repl_offset{job="redis_exporter"})) - '
                   'min by (host) (redis_master_repl_offset{job="redis_exporter"})', "{{host}}")),
        ],
        [log_lines("Log", "What Redis and Sentinel wrote.", f'{{{HOSTS}, unit=~"redis.*"}}')],
    ],
    hosts="redis_exporter",
)  # fmt: skip
