// A WebSocket visitor over HTTP/1.1. Takes { port, ca, host, path }; prints one JSON object.
'use strict';
const fs = require('node:fs');
const crypto = require('node:crypto');
const WebSocket = require('ws');

const options = JSON.parse(process.argv[2]);
const say = (result, code) => { process.stdout.write(JSON.stringify(result) + '\n'); process.exitCode = code; };

const socket = new WebSocket(`wss://${options.host}:${options.port}${options.path}`, ['echo.v1'], {
  lookup: (host, lookupOptions, callback) => (lookupOptions.all
    ? callback(null, [{ address: '127.0.0.1', family: 4 }])
    : callback(null, '127.0.0.1', 4)),
  servername: options.host,
  ca: fs.readFileSync(options.ca),
  headers: { Host: options.host },
});
const large = crypto.randomBytes(3 * 1024 * 1024);
let hello = null;
let text = null;
socket.on('message', (data, binary) => {
  if (hello === null) { hello = JSON.parse(data.toString()); socket.send('grüß dich'); return; }
  if (text === null) { text = data.toString(); socket.send(large); return; }
  say({ hello, text, protocol: socket.protocol, large: binary && large.equals(data) }, 0);
  socket.close(1000, 'done');
});
socket.on('unexpected-response', (request, response) => {
  let body = '';
  response.on('data', (data) => { body += data; });
  response.on('end', () => { say({ refused: response.statusCode, body }, 0); process.exit(0); });
});
socket.on('error', (error) => say({ error: error.message }, 2));
