// A server on Node's own http module. Node has no handler of SIGTERM: it dies at once.
import http from "node:http";

http
  .createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    if (url.pathname.startsWith("/shop/hello/")) {
      response.setHeader("Content-Type", "application/json");
      const hello = decodeURIComponent(url.pathname.slice("/shop/hello/".length));
      response.end(JSON.stringify({ hello, headers: request.headers, query: Object.fromEntries(url.searchParams) }));
    } else if (url.pathname === "/shop/echo") {
      response.setHeader("Content-Type", request.headers["content-type"]);
      request.pipe(response);
    } else if (url.pathname.startsWith("/shop/count/")) {
      const last = Number(url.pathname.slice("/shop/count/".length));
      response.setHeader("Content-Type", "text/plain");
      let number = 0;
      const timer = setInterval(() => {
        if (number < last) response.write(`${number++}\n`);
        else {
          clearInterval(timer);
          response.end();
        }
      }, 50);
    } else {
      response.statusCode = url.pathname === "/healthz" ? 200 : 404;
      response.end();
    }
  })
  .listen(Number(process.env.PORT), process.env.HOST);
