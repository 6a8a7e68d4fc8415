const http = require('node:http');
const { greeting } = require('./build/greeting.json');

const release = process.env.LARDER_RELEASE || 'unknown';
const port = Number(process.env.PORT || 3000);

const server = http.createServer((request, response) => {
  response.setHeader('Content-Type', 'text/plain; charset=utf-8');
  if (request.url !== '/') {
    response.statusCode = 404;
    response.end('Not found\n');
    return;
  }
  response.end(`${greeting}\nrelease ${release}\n`);
});

server.listen(port, '127.0.0.1', () => console.log(`listening on ${port}`));

// Finish open requests, then exit.
process.on('SIGTERM', () => server.close(() => process.exit(0)));
