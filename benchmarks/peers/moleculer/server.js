// The answering node: two brokers, because JSON is Moleculer's fastest serializer for a small
// object and cannot carry bytes, while Notepack (MessagePack) carries a Buffer as it is.
"use strict";
const { broker, untilOrphaned } = require("./node");

async function main() {
  for (const serializer of ["JSON", "Notepack"]) {
    const one = broker("server", serializer);
    one.createService({ name: "echo", actions: { echo: (ctx) => ctx.params, blob: (ctx) => ctx.params } });
    await one.start();
  }
  untilOrphaned();
}

main();
