// A WebSocket echo on a free port of loopback. Prints the port.
'use strict';
const http = require('node:http');
const { WebSocketServer } = require('ws');

const server = http.createServer((request, response) => response.end('plain'));
const sockets = new WebSocketServer({
  server,
  path: '/ws',
  handleProtocols: (offered) => (offered.has('echo.v1') ? 'echo.v1' : false),
});
sockets.on('connection', (socket, request) => {
  socket.send(JSON.stringify({ url: request.url, host: request.headers.host, proto: request.headers['x-forwarded-proto'], method: request.method }));
  socket.on('message', (data, binary) => socket.send(data, { binary }));
});
server.listen(0, '127.0.0.1', () => process.stdout.write(server.address().port + '\n'));
