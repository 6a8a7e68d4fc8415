"""The reverse proxy: wrk through larder's proxy, through nginx, and directly to the application."""

import re

from lib import trees
from lib.servers import Larder, nginx_config
from lib.table import OURS, Row, rounds
from lib.world import Unavailable, free_port, need
from rows.push import Contestant, BRANCH

HELP = "requests per second and p99 through larder's proxy, nginx with keep-alive upstreams, and no proxy, with wrk"
NGINX = "nginx, upstream keep-alive"
PLAIN = "nginx as Debian configures it"
NONE = "no proxy (limit)"

# All contestants use the same nginx as application, so that only the proxy differs.
START = """#!/bin/sh
set -e
base=$(mktemp -d)
cat >"$base/nginx.conf" <<END
daemon off;
worker_processes 1;
pid $base/pid;
error_log stderr;
events { worker_connections 2048; }
http {
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path $base/a; proxy_temp_path $base/b; fastcgi_temp_path $base/c; uwsgi_temp_path $base/d; scgi_temp_path $base/e;
    server { listen 127.0.0.1:$PORT; location / { return 200 "hello, bench\\n"; } }
}
END
PATH=$PATH:/usr/sbin:/sbin
exec nginx -e stderr -c "$base/nginx.conf"
"""


def options(parser):
    parser.add_argument("--seconds", type=int, default=4, help="length of one wrk run (default: 4)")


def wrk(world, tool, port, header, connections, seconds):
    """Returns requests per second, and the 99th percentile of the latency in milliseconds."""
    out = world.run(
        [tool, "-t", 1, "-c", connections, "-d", f"{seconds}s", "--latency", "-H", f"Host: {header}", f"http://127.0.0.1:{port}/"],
        timeout=seconds + 30,
    ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    late = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    if rate is None or late is None or "Non-2xx" in out:
        raise Unavailable("wrk reported errors: " + " ".join(out.split()[-20:]))
    return float(rate.group(1)), float(late.group(1)) * {"us": 0.001, "ms": 1, "s": 1000}[late.group(2)]


def measure(world, args, progress):
    tool = need("wrk")
    nginx = need("nginx", "nginx-light")
    counts = (1, 16, 64)
    rates = {n: Row(f"proxy, {n} connection{'s' * (n > 1)}: requests", unit="/s", reference=NGINX, rate=True, target="≥ 1.00x") for n in counts}
    tails = {n: Row(f"proxy, {n} connection{'s' * (n > 1)}: p99", unit="ms", reference=NGINX, target="≤ 1.00x") for n in counts}
    every = [*rates.values(), *tails.values()]

    work = world.path("work", "hello")
    (work / "start").write_text(START)
    (work / "start").chmod(0o755)
    (work / "Procfile").write_text("web: ./start\n")
    trees.commit(world, work)

    upstream = free_port()
    process = world.spawn([work / "start"], "upstream", env={"PORT": str(upstream)})
    world.wait_for_port(upstream, process)
    doors = {NONE: (upstream, "localhost")}
    common = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header Host $host;"
    for name, config in (
        (NGINX, f"upstream app {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000; }} keepalive_requests 1000000; server {{ listen 127.0.0.1:PORT; "
                f'location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; {common} }} }}'),
        (PLAIN, f"server {{ listen 127.0.0.1:PORT; location / {{ proxy_pass http://127.0.0.1:{upstream}; {common} }} }}"),
    ):
        port, short = free_port(), name.split()[1].strip(",")
        process = world.spawn([nginx, "-e", "stderr", "-c", nginx_config(world, short, config.replace("PORT", str(port)), workers=2)], f"nginx-{short}")
        world.wait_for_port(port, process)
        doors[name] = (port, "localhost")
    try:
        larder = Larder(world, args.larder)
        url = larder.create("hello")
        host, port, header = larder.web("hello")
        Contestant(world, OURS, work, url, host, port, header, None)
        world.git("push", "live", f"HEAD:refs/heads/{BRANCH}", cwd=work, timeout=120)
        doors[OURS] = (port, header)
    except Unavailable as why:
        for row in every:
            row.absent[OURS] = str(why)
    for index, order in rounds(args.runs, doors):
        for name in order:
            port, header = doors[name]
            for connections in counts:
                if name in rates[connections].absent:
                    continue
                try:
                    rate, late = wrk(world, tool, port, header, connections, args.seconds)
                    rates[connections].add(name, rate)
                    tails[connections].add(name, late)
                except Unavailable as why:
                    for row in (rates[connections], tails[connections]):
                        row.samples.pop(name, None)
                        row.absent[name] = str(why)
        progress(f"proxy: round {index + 1} of {args.runs}")
    return every
