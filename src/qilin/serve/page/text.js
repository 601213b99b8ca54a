"use strict";
// All words of the page, Chinese first. T("name") gives the current language's.
const TEXTS = {
  zh: {
    notice: "仅供科研使用，不能用于诊断或治疗：回答可能有误。",
    new: "新对话", export: "导出", print: "打印", history: "历史", settings: "设置", help: "帮助", close: "关闭", ok: "确定",
    skip: "跳到提问框", images: "图像", drop: "把图像或整个文件夹拖到这里，也可以粘贴或选取", formats: "PNG、JPEG、TIFF、DICOM、NIfTI",
    pick: "选取文件", folder: "选取文件夹", talk: "对话", question: "请输入问题", send: "发送", stop: "停止",
    empty: "载入图像后提问；也可以直接提问。", toolbar: "图像工具",
    key: "API 密钥", "key-help": "此服务器需要密钥，请向管理员索取。密钥只保存在当前标签页。",
    model: "模型", compare: "对比", none: "不对比", "compare-help": "同一图像和问题由两个模型分别回答",
    theme: "外观", auto: "跟随系统", light: "浅色", dark: "深色", language: "语言",
    user: "提问", assistant: "回答", retry: "重新回答", edit: "修改", copy: "复制", copied: "已复制", done: "回答完毕", waiting: "正在回答",
    low: "模型对这个回答没有把握。", confidence: "置信度", tokens: "token", cached: "来自缓存",
    "not-calibrated": "未经校准：是各 token 概率的几何平均，不是回答正确的概率", calibrated: "经评测校准：评测中这样的回答有这么多是正确的",
    aborted: "已停止", error: "出错", offline: "无法连接服务器", length: "回答达到长度上限，可能不完整。",
    "status-401": "密钥缺失或不正确", "status-413": "文件太大", "status-429": "服务器繁忙，请稍后再试", "status-503": "服务器正在停止", "status-500": "模型出错",
    "status-404": "服务器上已没有这幅图像，请重新载入", "status-403": "服务器不接受这个地址的请求",
    map: "依据区域", "map-title": "遮挡图", "map-running": "正在逐格遮挡", "map-image": "要检查的图像",
    "map-help": "逐格遮住图像并重新计算：颜色越深，遮住该处后模型给出这个回答的对数概率下降越多。它说明模型用到了哪里，不说明回答是否正确，也不是病灶的轮廓；分散在各处、或遮住后仍能从别处推断的依据不会显示。",
    "map-none": "遮住任何一格，回答的概率都没有明显下降：这个回答不取决于图像的某一处，可能根本没有用到图像。",
    "map-scale": "对数概率下降", "map-gone": "图像已移除，无法计算", "map-upstream": "由外部服务器回答，无法计算依据区域",
    window: "调窗", center: "窗位", width: "窗宽", "default-window": "默认窗", preset: "预设窗", custom: "自定义", invert: "反相", pan: "平移", measure: "测距", angle: "测角",
    region: "框选", reset: "复位", remove: "移除图像", undo: "删除标记", "zoom-in": "放大", "zoom-out": "缩小", zoom: "缩放", planes: "三平面", link: "联动",
    slice: "层面", axial: "轴位", coronal: "冠状位", sagittal: "矢状位", frame: "帧", plane: "平面",
    pixels: "像素", detector: "（探测器平面，未校正放大）", "measure-hint": "在图上点两点", "angle-hint": "在图上点三点", "region-hint": "点两个对角，或拖动",
    "canvas-help": "按 H 查看按键", loading: "正在读取", loaded: "已载入", failed: "无法读取",
    regionNote: "（问题针对图中框选的区域，第二张图为该区域的放大）", regionPrefix: "框选区域",
    "too-many": "最多同时显示 8 幅图像", confirmNew: "开始新对话并移除图像？", send_first: "请先输入问题", "context-image": "图像", remaining: "等",
    "export-title": "对话记录", date: "时间", "history-help": "默认不保存。开启后，对话和图像的缩略图保存在这台电脑的这个浏览器里，不会上传；公用电脑请不要开启。",
    "history-on": "在此浏览器中保存对话", "history-delete": "删除全部历史", "history-none": "没有保存的对话", "history-deleted": "已删除全部历史",
    open: "打开", delete: "删除", saved: "保存的对话，只能查看；载入图像并开始新对话后可以继续提问。", "history-off": "关闭后不再保存新的对话，已保存的会留到删除为止。",
    "history-failed": "此浏览器不能保存历史",
    keys: "快捷键", "keys-list": [["↑ ↓", "上一层、下一层（单幅图像：移动）"], ["Shift + 方向键", "移动图像"], ["+ −", "放大、缩小"], ["0", "复位"], ["I", "反相"],
      ["W P", "调窗、平移"], ["M A R", "测距、测角、框选：方向键移动十字，Enter 定点，Esc 取消"], ["[ ] { }", "窗位、窗宽"], ["Delete", "删除标记"], ["H", "显示本页"],
      ["Enter", "发送；Shift + Enter 换行"], ["Esc", "停止回答"]],
    "server-synthetic": "本模型用绘制的图像训练：对真实图像的回答没有意义。", "server-stage1": "本模型来自第一阶段：不管问什么，都只会描述图像。", "server-calibration": "置信度未经校准：该模型没有评测过（qilin evaluate）。", "server-weights": "置信度未经校准：评测时用的是另一份权重（qilin evaluate）。",
    presets: {},
    suggestions: {
      "": ["图中有异常吗？", "请描述这张图像。", "这是什么检查？", "病变位于哪一侧？"],
      CT: ["请描述这张 CT 图像。", "图中有占位或结节吗？", "有无出血或积液？", "病变位于哪一侧？"],
      MR: ["请描述这张 MR 图像。", "这是什么序列？", "图中有异常信号吗？", "病变位于哪一侧？"],
      DX: ["请描述这张 X 线片。", "有无骨折？", "肺内有实变吗？", "心影增大吗？"],
      MG: ["请描述这张乳腺 X 线片。", "有无钙化？", "有无肿块？", "病变位于哪个象限？"],
      US: ["请描述这张超声图像。", "有无占位？", "回声是否均匀？", "有无积液？"],
      PT: ["请描述这张 PET 图像。", "有无异常摄取？", "摄取增高位于何处？"],
      XA: ["请描述这张造影图像。", "血管有无狭窄？", "有无造影剂外渗？"],
      OP: ["请描述这张眼底图像。", "有无出血或渗出？", "视盘是否正常？", "这是左眼还是右眼？"],
      ES: ["请描述这张内镜图像。", "有无息肉或溃疡？", "这是哪个部位？"],
      SM: ["请描述这张病理图像。", "这是什么组织？", "有无异型细胞？", "用的是什么染色？"],
    },
  },
  en: {
    notice: "For research only, not for diagnosis or treatment: answers may be wrong.",
    new: "New chat", export: "Export", print: "Print", history: "History", settings: "Settings", help: "Help", close: "Close", ok: "OK",
    skip: "Skip to the question", images: "Images", drop: "Drop images or a whole folder here, paste or choose them", formats: "PNG, JPEG, TIFF, DICOM, NIfTI",
    pick: "Choose files", folder: "Choose a folder", talk: "Chat", question: "Your question", send: "Send", stop: "Stop",
    empty: "Load images and ask about them; questions without an image work too.", toolbar: "Image tools",
    key: "API key", "key-help": "This server needs a key; ask its administrator. The key stays in this tab.",
    model: "Model", compare: "Compare with", none: "nothing", "compare-help": "Two models answer the same question about the same images",
    theme: "Appearance", auto: "as the system", light: "light", dark: "dark", language: "Language",
    user: "Question", assistant: "Answer", retry: "Answer again", edit: "Edit", copy: "Copy", copied: "Copied", done: "Answer complete", waiting: "Answering",
    low: "The model is not sure of this answer.", confidence: "confidence", tokens: "tokens", cached: "cached",
    "not-calibrated": "not calibrated: the geometric mean of the tokens' probabilities, not the probability that the answer is right", calibrated: "calibrated: the share of such answers that were right in the evaluation",
    aborted: "stopped", error: "Error", offline: "the server cannot be reached", length: "The answer reached its length limit and may be incomplete.",
    "status-401": "the key is missing or wrong", "status-413": "the file is too large", "status-429": "the server is busy, try again soon", "status-503": "the server is stopping", "status-500": "the model failed",
    "status-404": "the server no longer has this image; load it again", "status-403": "the server does not take requests from this address",
    map: "Where from", "map-title": "Occlusion map", "map-running": "Blanking cell by cell", "map-image": "image to examine",
    "map-help": "Each cell of the image is blanked in turn and the answer scored again: the stronger the color, the more the log probability of this answer falls. It shows what the model used, not whether the answer is right, and it is no outline of a lesion. Evidence that is spread out, or that the model can still infer from elsewhere, does not show.",
    "map-none": "No cell lowers the probability of this answer noticeably: it does not depend on one part of the image, and perhaps not on the image at all.",
    "map-scale": "fall of the log probability", "map-gone": "The image was removed; there is nothing to compute", "map-upstream": "“Where from” is not possible: another server answers",
    window: "Window", center: "Center", width: "Width", "default-window": "Default", preset: "Preset", custom: "Custom", invert: "Invert", pan: "Pan", measure: "Distance", angle: "Angle",
    region: "Region", reset: "Reset", remove: "Remove image", undo: "Delete marks", "zoom-in": "Zoom in", "zoom-out": "Zoom out", zoom: "zoom", planes: "Three planes", link: "Link",
    slice: "slice", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", frame: "frame", plane: "Plane",
    pixels: "pixels", detector: " (at the detector, magnification not corrected)", "measure-hint": "click two points", "angle-hint": "click three points", "region-hint": "click two corners, or drag",
    "canvas-help": "H lists the keys", loading: "Reading", loaded: "Loaded", failed: "Cannot be read",
    regionNote: " (The question is about the marked region; the second image shows it enlarged.)", regionPrefix: "marked region",
    "too-many": "at most 8 images are shown at a time", confirmNew: "Start a new chat and remove the images?", send_first: "Write a question first", "context-image": "Image", remaining: "and more",
    "export-title": "Conversation", date: "Date", "history-help": "Nothing is kept by default. If you turn it on, conversations and small versions of their images are kept in this browser on this computer and are not uploaded. Leave it off on a shared computer.",
    "history-on": "Keep conversations in this browser", "history-delete": "Delete all history", "history-none": "No conversation is kept", "history-deleted": "All history is deleted",
    open: "Open", delete: "Delete", saved: "A kept conversation, to read; load the images and start a new chat to ask more.", "history-off": "Turning it off keeps what is there until you delete it.",
    "history-failed": "This browser cannot keep a history",
    keys: "Keys", "keys-list": [["↑ ↓", "previous or next slice (single image: move)"], ["Shift + arrows", "move the image"], ["+ −", "zoom"], ["0", "reset"], ["I", "invert"],
      ["W P", "window, pan"], ["M A R", "distance, angle, region: arrows move the cross, Enter sets a point, Esc cancels"], ["[ ] { }", "window center, window width"], ["Delete", "delete marks"], ["H", "show this list"],
      ["Enter", "send; Shift + Enter starts a line"], ["Esc", "stop the answer"]],
    "server-synthetic": "This model was trained on drawn images: its answers about real images mean nothing.", "server-stage1": "This model is from stage 1: it describes an image, whatever the question.", "server-calibration": "The confidence is not calibrated: the model was not evaluated (qilin evaluate).", "server-weights": "The confidence is not calibrated: the model was evaluated with other weights (qilin evaluate).",
    presets: { 肺窗: "Lung", 纵隔窗: "Mediastinum", 骨窗: "Bone", 脑窗: "Brain", 卒中窗: "Stroke", 硬膜下窗: "Subdural", 颞骨窗: "Temporal bone",
      腹窗: "Abdomen", 肝窗: "Liver", 软组织窗: "Soft tissue", 脊柱窗: "Spine", 血管窗: "Angio" },
    suggestions: {
      "": ["Is there anything abnormal?", "Describe this image.", "Which examination is this?", "On which side is the lesion?"],
      CT: ["Describe this CT image.", "Is there a mass or a nodule?", "Is there bleeding or fluid?", "On which side is the lesion?"],
      MR: ["Describe this MR image.", "Which sequence is this?", "Is there an abnormal signal?", "On which side is the lesion?"],
      DX: ["Describe this radiograph.", "Is there a fracture?", "Is there a consolidation?", "Is the heart enlarged?"],
      MG: ["Describe this mammogram.", "Are there calcifications?", "Is there a mass?", "In which quadrant is the lesion?"],
      US: ["Describe this ultrasound image.", "Is there a mass?", "Is the echo homogeneous?", "Is there fluid?"],
      PT: ["Describe this PET image.", "Is there abnormal uptake?", "Where is the uptake raised?"],
      XA: ["Describe this angiogram.", "Is there a stenosis?", "Is there extravasation?"],
      OP: ["Describe this fundus image.", "Are there hemorrhages or exudates?", "Is the optic disc normal?", "Is this the left or the right eye?"],
      ES: ["Describe this endoscopic image.", "Is there a polyp or an ulcer?", "Which part is shown?"],
      SM: ["Describe this slide.", "Which tissue is this?", "Are there atypical cells?", "Which stain was used?"],
    },
  },
};
const MODALITY_ALIASES = { CR: "DX", RF: "DX", RG: "DX", XC: "", NM: "PT", IVUS: "US", OPT: "OP", GM: "SM" };
let language = "zh";
function T(name) { return TEXTS[language][name] ?? TEXTS.zh[name] ?? name; }

function setDisclaimer(disclaimer) { // the server's own line, also in exports and prints
  for (const name of Object.keys(TEXTS)) TEXTS[name].notice = disclaimer[`text_${name}`] ?? TEXTS[name].notice;
  applyLanguage();
}

function applyLanguage(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = T(node.dataset.text);
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = T(node.dataset.placeholder);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", T(node.dataset.label));
  for (const node of root.querySelectorAll("[data-title]")) node.title = T(node.dataset.title);
  const button = document.getElementById("language");
  button.textContent = language === "zh" ? "English" : "中文";
  button.lang = language === "zh" ? "en" : "zh-CN";
}

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}
function textButton(name, action, properties = {}) {
  const node = element("button", { type: "button", textContent: T(name), ...properties });
  node.dataset.text = name;
  node.addEventListener("click", action);
  return node;
}
