// A broker on the TCP transporter with fixed addresses: no discovery by multicast, so that two
// benchmarks on one network never meet. PORTS = four free ports, two for each serializer.
"use strict";
const { ServiceBroker } = require("moleculer");

const PORTS = process.env.PORTS.split(",").map(Number);

function broker(nodeID, serializer) {
  const [server, client] = serializer === "JSON" ? PORTS.slice(0, 2) : PORTS.slice(2, 4);
  return new ServiceBroker({
    nodeID,
    namespace: serializer,
    logger: false,
    serializer,
    transporter: {
      type: "TCP",
      options: {
        udpDiscovery: false,
        urls: [`tcp://127.0.0.1:${server}/server`, `tcp://127.0.0.1:${client}/client`],
        maxPacketSize: 16 * 1024 * 1024,
      },
    },
  });
}

// The benchmark holds the other end of stdin: when it is gone, so is this process.
function untilOrphaned() {
  process.stdin.on("end", () => process.exit(0));
  process.stdin.resume();
}

module.exports = { broker, untilOrphaned };
