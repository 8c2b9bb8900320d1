// A WebSocket visitor over HTTP/2 (RFC 8441). Takes { port, ca, host, path, headers? }; prints one JSON
// object. Frames are written by hand (RFC 6455, section 5): the `ws` package speaks HTTP/1.1 only.
'use strict';
const fs = require('node:fs');
const crypto = require('node:crypto');
const http2 = require('node:http2');

const options = JSON.parse(process.argv[2]);
const finish = (result, code) => { process.stdout.write(JSON.stringify(result) + '\n'); process.exit(code); };

const frame = (text) => {
  const payload = Buffer.from(text);
  const mask = crypto.randomBytes(4);
  const masked = Buffer.from(payload.map((octet, index) => octet ^ mask[index % 4]));
  return Buffer.concat([Buffer.from([0x81, 0x80 | payload.length]), mask, masked]);
};

// Takes whole unmasked frames of less than 64 KiB off the front of what was received.
const takeFrames = (state) => {
  const found = [];
  for (;;) {
    const { buffer } = state;
    if (buffer.length < 2) return found;
    let length = buffer[1] & 0x7f;
    let head = 2;
    if (length === 126) { if (buffer.length < 4) return found; length = buffer.readUInt16BE(2); head = 4; }
    if (buffer.length < head + length) return found;
    found.push({ opcode: buffer[0] & 0xf, text: buffer.subarray(head, head + length).toString() });
    state.buffer = buffer.subarray(head + length);
  }
};

const session = http2.connect(`https://${options.host}:${options.port}`, {
  lookup: (host, lookupOptions, callback) => (lookupOptions.all
    ? callback(null, [{ address: '127.0.0.1', family: 4 }])
    : callback(null, '127.0.0.1', 4)),
  ca: fs.readFileSync(options.ca),
});
session.on('error', (error) => finish({ error: error.message }, 2));
session.on('remoteSettings', (settings) => {
  if (!settings.enableConnectProtocol) finish({ error: 'the gateway does not offer RFC 8441' }, 2);
  const stream = session.request({
    ':method': 'CONNECT',
    ':protocol': 'websocket',
    ':scheme': 'https',
    ':authority': options.host,
    ':path': options.path,
    'sec-websocket-version': '13',
    'sec-websocket-protocol': 'echo.v1',
    origin: `https://${options.host}`,
    ...options.headers,
  });
  const state = { buffer: Buffer.alloc(0) };
  const texts = [];
  let status = 0;
  let headers = {};
  stream.on('response', (head) => { headers = head; status = head[':status']; if (status === 200) stream.write(frame('over h2')); });
  stream.on('data', (data) => {
    if (status !== 200) { texts.push(data.toString()); return; }
    state.buffer = Buffer.concat([state.buffer, data]);
    for (const { opcode, text } of takeFrames(state)) {
      if (opcode === 1) texts.push(text);
      if (texts.length === 2) finish({ status, hello: JSON.parse(texts[0]), text: texts[1], protocol: headers['sec-websocket-protocol'], accept: headers['sec-websocket-accept'] || null, connection: headers.connection || null }, 0);
    }
  });
  stream.on('end', () => finish({ status, body: texts.join('') }, 0));
  stream.on('error', (error) => finish({ error: error.message }, 2));
});
