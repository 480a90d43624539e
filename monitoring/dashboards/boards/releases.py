"""Releases: what runs where, since when, and what a change of it did to the clients."""

from boards.panels import board, lines, number, rate, rows

BOARD = board(
    "arches-releases",
    "Releases",
    "Which release runs where, and what a change of it did to the clients. The blue marks are changes.",
    [
        [
            number("Releases running", "Different releases that run at the same time.", "short",
                   "count(count by (release) (arches_build_info))", bad_from=2),
            number("Processes", "Processes of the API.", "short", "count(arches_build_info)", bad_below=1),
            number("Youngest process", "Time since the last start of an API process.", "s",
                   'time() - max(process_start_time_seconds{job="api_metrics"})'),
        ],
        [
            lines("Processes by release", "How many processes run which release.", "short",
                  ("count by (release) (arches_build_info)", "{{release}}"), stacked=True),
            rows("Release by host", "How many processes of each host run which release.", "short",
                 "count by (host, release) (arches_build_info)"),
        ],
        [
            rate("Answers at the edge", "Requests per second by status, to be compared before and after.", "reqps",
                 ("edge_requests_total", "{{code}}"), by="code"),
            lines("Restarts", "When each API process was started.", "dateTimeAsIso",
                  ('process_start_time_seconds{job="api_metrics"} * 1000', "{{instance}}")),
        ],
    ],
)  # fmt: skip
