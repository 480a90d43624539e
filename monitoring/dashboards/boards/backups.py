"""Backups: how old they are, what a loss would cost now, when a restore was last proven; and the store."""

from boards.panels import board, lines, log_lines, number, rate

MADE = "arches_backup_last_success_timestamp_seconds"
LAST_WAL = "time() - max(pg_stat_archiver_last_archived_time and on (host) patroni_primary == 1)"
CANARY = "time() - max(arches_canary_last_success_timestamp_seconds)"
# Of the host that made the newest one: the others still tell of older ones.
NEWEST = f"and on (host, type) ({MADE} == on (type) group_left () max by (type) ({MADE}))"

BOARD = board(
    "arches-backups",
    "Backups",
    "How old backups are, what a loss of all data hosts would cost, and when a restore was last proven.",
    [
        [
            number("Last proven restore", "Time since a restore was last proven whole.", "s",
                   "time() - max(arches_restore_last_proven_timestamp_seconds)", bad_from=2 * 86400),
            number("Last attempt", "1 when the last attempt to prove a restore succeeded.", "short",
                   "min(arches_restore_last_attempt_success)", bad_below=1),
            number("Loss by the last proof", "Age of the newest canary in the store when that proof began.", "s",
                   "max(arches_restore_rpo_seconds)", bad_from=180),
            number("Last backup", "Time since the last full or differential backup ended.", "s",
                   f'time() - max({MADE}{{type=~"full|differential"}})', bad_from=26 * 3600),
            number("Last archived WAL", "Time since the leader archived a segment.", "s",
                   LAST_WAL, bad_from=300),
            number("Last canary", "Time since the row was written by which restores are judged.", "s",
                   CANARY, bad_from=300),
        ],
        [
            lines("What a loss would cost", "Age of the newest canary, and of the last archived WAL.", "s",
                  (CANARY, "newest canary"),
                  (LAST_WAL, "last WAL"),
                  ("max(arches_restore_rpo_seconds)", "measured by the last proof")),
            rate("WAL archived", "Segments per second that reached the store; at least one a minute.", "cps",
                 ("pg_stat_archiver_archived_count", "{{host}}"), by="host"),
            rate("WAL not archived", "Failed attempts per second; zero is the normal state.", "cps",
                 ("pg_stat_archiver_failed_count", "{{host}}"), by="host"),
        ],
        [
            lines("Age of backups", "Time since the last one of each type ended.", "s",
                  (f"time() - max by (type) ({MADE})", "{{type}}")),
            lines("Size of backups", "What the last one of each type takes in the store.", "bytes",
                  (f"arches_backup_size_bytes {NEWEST}", "{{type}}")),
            lines("Duration of backups", "Time that the last one of each type took.", "s",
                  (f"arches_backup_duration_seconds {NEWEST}", "{{type}}")),
            lines("Duration of a proof", "Time that the last proven restore took, with replaying and checks.", "s",
                  ("max by (host) (arches_restore_duration_seconds)", "{{host}}")),
        ],
        [
            lines("Size of the store", "What lies in each bucket, also what was deleted lately.", "bytes",
                  ("arches_s3_bucket_bytes", "{{bucket}} {{state}}"), stacked=True),
            lines("Room in the store", "What its disk has free.", "bytes", ("arches_s3_free_bytes", "{{host}}")),
            lines("Last pruned", "Time since the store removed what was deleted long ago.", "s",
                  ("time() - max(arches_s3_prune_last_success_timestamp_seconds)", "age")),
        ],
        [log_lines("Log", "What backups, canaries, proofs and pruning wrote.",
                   '{unit=~"arches-(backup|canary|prover|s3-prune).*"}')],
    ],
)  # fmt: skip
