# Verbs. Each is one or two commands that can be typed without make; `make help` lists them.
ENV ?= local
FORMAT ?= table
INVENTORY := inventories/$(ENV)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PLAY := ansible-playbook -i $(INVENTORY)
# Local machines share this computer: with more of them at work at once than it has cores, users of the API wait.
GENTLY := $(if $(filter local dev,$(ENV)),--forks $(shell nproc))

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## Show these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | column -t -s '|'

environment: ## Make .venv from the hashed lock files and install missing system packages
	@ansible/bin/environment

up: environment ## Bring the whole local fleet up (image, machines, site.yml); a second run changes nothing
	@python packages/build.py >/dev/null
	$(PLAY) ansible/up.yml
	@ansible/bin/status $(INVENTORY) --format story

site: environment ## Make the environment ENV what git says
	$(PLAY) site.yml $(GENTLY)

down: environment ## Destroy the local machines and their disks (asks when they hold old data; FORCE=1 does not); kept volumes stay unless DELETE_VOLUMES=1
	$(PLAY) ansible/down.yml $(if $(FORCE),-e force=true) $(if $(DELETE_VOLUMES),-e delete_volumes=true)

stop: environment ## Stop the local machines and keep their disks
	$(PLAY) ansible/machines.yml -e state=stopped

start: environment ## Start stopped local machines
	$(PLAY) ansible/machines.yml -e state=present

status: environment ## Show hosts, services and leaders (FORMAT=json for scripts); exit 0 only when all is healthy
	@ansible/bin/status $(INVENTORY) --format $(FORMAT)

ssh: environment ## Open a shell on a host: make ssh HOST=data1
	@ssh -F $(INVENTORY)/.state/ssh/config $(HOST)

open: environment ## Print the addresses of all pages, and how to reach them
	@ansible/bin/open $(INVENTORY)

logs: environment ## Print log lines: make logs QUERY='{host="api1"} |= `text`' SINCE=15m (or HOST=, UNIT=)
	@ansible/bin/logs $(INVENTORY)

trace: environment ## Print a trace's spans: make trace ID=<32 hex digits>
	@ansible/bin/trace $(INVENTORY)

silence: environment ## Silence an alert: make silence ALERT=HostDown HOST=data1 FOR=1h COMMENT="disk is being replaced"
	@ansible/bin/silence $(INVENTORY)

packages: environment ## Build what Debian does not ship and make the fleet's apt repository
	$(PLAY) ansible/packages.yml

migrate: environment ## The database's schema: make migrate WHAT=plan, status or apply (RELEASE=v1.4.0: that release's migrations)
	$(PLAY) ansible/migrate.yml -e what=$(or $(WHAT),plan) $(if $(RELEASE),-e release=$(RELEASE))

release: environment ## Build, sign and publish a tag's release into dist/: make release VERSION=v1.4.0 (OLDER=1 when a newer tag is there)
	$(PLAY) ansible/release_tag.yml -e release=$(VERSION) $(if $(OLDER),-e older=true)

preview: environment ## Say what `make site` would change, as a page in Markdown; changes nothing
	@ansible/bin/preview.py $(INVENTORY)

drift: environment ## Are the hosts what git says? Compared with the commit that was deployed; exit status 2 when they differ
	@ansible/bin/drift $(INVENTORY)

preflight: environment ## Before a deployment: may it go ahead? (docs/workflows.md)
	@ansible/bin/preflight $(INVENTORY)

verify: environment ## After a deployment: is all well? (RELEASE=v1.4.0: does it serve everywhere?)
	@ansible/bin/verify $(INVENTORY) $(if $(RELEASE),--release $(RELEASE))

publish: environment ## Put a tag's release from dist/ onto GitHub, with the commits since the one before: make publish VERSION=v1.4.0
	@ansible/bin/publish $(VERSION)

access: environment ## Let this computer in by ssh, with what the environment's variables bring (docs/workflows.md)
	@ansible/bin/access $(INVENTORY)

deploy: environment ## Roll a release out without losing a request: make deploy RELEASE=v1.4.0, or the working tree's (OLDER=1: also an older one; SOAK=20 seconds)
	$(PLAY) ansible/deploy.yml $(if $(RELEASE),-e release=$(RELEASE)) $(if $(OLDER),-e older=true) $(if $(SOAK),-e soak_s=$(SOAK))

rollback: environment ## Go back to the release that served before, or to a kept one: make rollback RELEASE=v1.3.0
	$(PLAY) ansible/rollback.yml $(if $(RELEASE),-e release=$(RELEASE))

scale: environment ## As many API hosts as API= says, without a failed request (REMOVE=api5 empties one where machines are not made from here)
	$(PLAY) ansible/scale.yml $(GENTLY) $(if $(API),-e api=$(API)) $(if $(REMOVE),-e remove=$(REMOVE))

restart: environment ## Restart every service of the fleet, host by host, without a failed request (EDGE=false leaves the edge out)
	$(PLAY) ansible/restart.yml $(if $(EDGE),-e edge=$(EDGE))

update: environment ## Bring Debian's packages up to date and reboot where asked for, host by host (REBOOT=always or never; EDGE=false)
	$(PLAY) ansible/update.yml $(if $(REBOOT),-e reboot=$(REBOOT)) $(if $(EDGE),-e edge=$(EDGE))

switchover: environment ## Have another member lead Postgres, without a failed request (CONFIRM=local says yes)
	$(PLAY) ansible/recover/postgres-switchover.yml $(if $(CONFIRM),-e confirm=$(CONFIRM))

redis-switchover: environment ## Have another member lead Redis, without losing a write (CONFIRM=local says yes)
	$(PLAY) ansible/recover/redis-switchover.yml $(if $(CONFIRM),-e confirm=$(CONFIRM))

recover: environment ## A recovery playbook: make recover INCIDENT=redis-switchover CONFIRM=local ARGUMENTS='{"x": 1}' (without CONFIRM it shows its plan)
	@test -f ansible/recover/$(INCIDENT).yml || { echo "make recover INCIDENT=...: one of $(notdir $(basename $(wildcard ansible/recover/*.yml)))" >&2; exit 2; }
	$(PLAY) ansible/recover/$(INCIDENT).yml -e "$${ARGUMENTS:-{\}}" $(if $(CONFIRM),-e confirm=$(CONFIRM),--check)

escrow: environment ## Seal what git does not hold and a rebuild needs into one bundle (docs/escrow.md; OUT=file elsewhere; IDENTITY=file opens it at once)
	$(PLAY) ansible/escrow.yml $(if $(OUT),-e bundle=$(OUT)) $(if $(IDENTITY),-e identity=$(IDENTITY))

escrow-check: environment ## Prove that the newest bundle opens and is what the environment uses now: make escrow-check IDENTITY=file
	$(PLAY) ansible/escrow.yml -e seal=false $(if $(IDENTITY),-e identity=$(IDENTITY)) $(if $(BUNDLE),-e bundle=$(BUNDLE))

dashboards: environment ## Make the dashboards' JSON from monitoring/dashboards
	python monitoring/dashboards/generate.py

dev: environment ## Run the API here with hot reload against one local machine with Postgres, PgBouncer and Redis
	$(MAKE) --no-print-directory machine ENV=dev
	ansible/bin/dev serve --reload

run-server: environment ## Run the API here once, against the machine of make dev
	$(MAKE) --no-print-directory machine ENV=dev
	ansible/bin/dev serve

machine: environment ## Bring the single machine of make dev up
	$(PLAY) ansible/dev.yml

check: environment ## The fast loop: format, lint, types, repository rules, unit tests (no fleet needed)
	python tests/run.py check

test: environment ## Prove everything: check, machines, roles, API, fleet
	python tests/run.py check parts roles app fleet

test-app: environment ## The API's tests on real Postgres, PgBouncer and Redis
	python tests/run.py artefacts app

test-roles: environment ## Molecule and testinfra for every role: make test-roles ROLES="redis nginx" for some (what passed this month with the same inputs is left out: FRESH=1)
	python tests/run.py roles

proven: environment ## Write which roles' scenarios have passed here to tests/proven/roles.txt: commit it, and CI leaves them out
	cd tests && python -m lib.proven

test-fleet: environment ## The tests of a running fleet
	python tests/run.py fleet

test-alerts: environment ## Cause alerts on the running local fleet: ALERTS=all, or names, or six of them
	python tests/run.py alerts

drill: environment ## Make parts of the running local fleet fail under load: make drill NAME="host-lost redis-hung" (all without; REPEATS=5)
	FAULTS="$(NAME)" pytest -s tests/drills/test_faults.py

drills-report: environment ## Write docs/drills from what drills have left in results/
	cd tests && python -m drills.report

test-full: environment ## Everything, with what is long and rarely breaks
	FRESH=1 python tests/run.py check parts roles app fleet full
	cd tests && python -m lib.proven

bench: environment ## Measure the figures of docs/bench.md into results/bench.json
	python tests/bench/run.py

lock: ## Resolve requirements/*.in again (versions move: read the diff)
	for name in app controller dev embedder embedder-build embedder-model uv; do (cd requirements && uv pip compile -q --upgrade --universal \
	  --generate-hashes --python-version 3.13 --custom-compile-command "make lock" --no-emit-index-url $$name.in -o $$name.txt); done
