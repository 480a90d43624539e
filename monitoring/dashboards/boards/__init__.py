"""All dashboards; the order is that of `ALL`."""

from boards import api, edge, fleet, hosts, pipeline, pools, postgres, redis, releases

# Pending: `backups`. Its metrics (arches_backup_last_success_timestamp_seconds and the like) come with the backups
# themselves; a dashboard without data would fail tests/fleet/test_6_dashboards.py.
ALL = (fleet.BOARD, api.BOARD, edge.BOARD, postgres.BOARD, pools.BOARD, redis.BOARD, hosts.BOARD, pipeline.BOARD,
       releases.BOARD)  # fmt: skip
