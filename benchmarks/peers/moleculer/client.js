// The asking node: the same closed loop and the same lines of JSON as benchmarks/host.py.
"use strict";
const { performance } = require("perf_hooks");
const readline = require("readline");
const { broker } = require("./node");

const SMALL = { name: "x", i: 7 };
const BIG = Buffer.alloc(1024 * 1024, 7);

async function loop(call, callers, seconds) {
  const took = [];
  const begin = performance.now();
  const end = begin + seconds * 1000;
  const cpu = process.cpuUsage();
  let last = begin;
  async function caller() {
    let at = performance.now();
    while (at < end) {
      await call();
      const now = performance.now();
      took.push(now - at);
      at = now;
    }
    if (at > last) last = at;
  }
  await Promise.all(Array.from({ length: callers }, caller));
  const used = process.cpuUsage(cpu);
  return { took, seconds: (last - begin) / 1000, cpu_s: (used.user + used.system) / 1e6 };
}

function summary({ took, seconds, cpu_s }) {
  const sorted = Float64Array.from(took).sort();
  const rank = (q) => sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] * 1000;
  return {
    calls: took.length,
    calls_per_s: took.length / seconds,
    p50_us: rank(0.5),
    p99_us: rank(0.99),
    cpu_us: (cpu_s / took.length) * 1e6,
  };
}

async function main() {
  const small = broker("client", "JSON");
  const big = broker("client", "Notepack");
  for (const one of [small, big]) {
    await one.start();
    await one.waitForServices(["echo"], 20000);
  }
  const calls = {
    small: () => small.call("echo.echo", SMALL),
    big: () => big.call("echo.blob", BIG),
  };
  const one = await calls.small();
  const whole = await calls.big();
  if (one.name !== SMALL.name || one.i !== SMALL.i) throw new Error("the small body came back changed");
  if (!Buffer.isBuffer(whole) || Buffer.compare(whole, BIG) !== 0) throw new Error("the big body came back changed");
  console.log(JSON.stringify({ ready: true }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const load = JSON.parse(line);
    await loop(calls[load.body], load.callers, load.warm_s);
    console.log(JSON.stringify(summary(await loop(calls[load.body], load.callers, load.seconds))));
  }
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
