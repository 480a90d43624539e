"""All dashboards; the order is that of `ALL`."""

from boards import api, backups, edge, fleet, hosts, pipeline, pools, postgres, redis, releases

ALL = (fleet.BOARD, api.BOARD, edge.BOARD, postgres.BOARD, backups.BOARD, pools.BOARD, redis.BOARD, hosts.BOARD,
       pipeline.BOARD, releases.BOARD)  # fmt: skip
