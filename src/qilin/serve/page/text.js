"use strict";
// All words of the page, Chinese first. T("name") gives the current language's.
const TEXTS = {
  zh: {
    notice: "仅供科研使用，不能用于诊断或治疗：回答可能有误。",
    new: "新对话", export: "导出", images: "图像", drop: "把图像拖到这里，或粘贴、选取：PNG、JPEG、TIFF、DICOM、NIfTI",
    pick: "选取文件", folder: "选取文件夹", talk: "对话", question: "请输入问题", send: "发送", stop: "停止",
    key: "API 密钥", "key-help": "此服务器需要密钥，请向管理员索取。密钥只保存在当前标签页。", ok: "确定",
    user: "提问", assistant: "回答", retry: "重新回答", edit: "修改", copy: "复制", copied: "已复制",
    map: "依据区域", "map-running": "正在计算", "map-help": "颜色越深，遮住该区域后模型给出这个回答的概率下降越多。它说明模型用到了哪里，不说明回答是否正确。",
    "map-none": "遮住任何区域，回答的概率都没有下降：这个回答不依赖图像的某一处。",
    "map-scale": "对数概率下降", low: "模型对这个回答没有把握。", confidence: "置信度", tokens: "token", cached: "来自缓存",
    window: "窗位/窗宽", auto: "默认窗", invert: "反相", measure: "测距", angle: "测角", region: "框选", reset: "复位", remove: "移除",
    slice: "层面", axial: "轴位", coronal: "冠状位", sagittal: "矢状位", frame: "帧", zoom: "缩放", link: "联动",
    "canvas-help": "图像。方向键翻层或移动，加减键缩放，0 复位，I 反相。", loading: "正在读取", loaded: "已载入", failed: "无法读取",
    regionNote: "（问题针对图中框选的区域，第二张图为该区域的放大）", "no-spacing": "像素",
    aborted: "已停止", error: "出错", offline: "无法连接服务器", "length": "回答达到长度上限，可能不完整。",
    "export-title": "对话记录", model: "模型", date: "时间", confirmNew: "开始新对话并移除图像？", "too-many": "最多同时显示 8 幅图像",
    send_first: "请先输入问题", "context-image": "图像",
    suggestions: {
      "": ["图中有异常吗？", "请描述这张图像。", "这是什么检查？", "病变位于哪一侧？"],
      CT: ["请描述这张 CT 图像。", "图中有占位或结节吗？", "有无出血或积液？", "病变位于哪一侧？"],
      MR: ["请描述这张 MR 图像。", "这是什么序列？", "图中有异常信号吗？", "病变位于哪一侧？"],
      DX: ["请描述这张 X 线片。", "有无骨折？", "肺内有实变吗？", "心影增大吗？"],
      CR: ["请描述这张 X 线片。", "有无骨折？", "肺内有实变吗？", "心影增大吗？"],
      US: ["请描述这张超声图像。", "有无占位？", "回声是否均匀？"],
    },
  },
  en: {
    notice: "For research only, not for diagnosis or treatment: answers may be wrong.",
    new: "New chat", export: "Export", images: "Images", drop: "Drop images here, paste or choose them: PNG, JPEG, TIFF, DICOM, NIfTI",
    pick: "Choose files", folder: "Choose a folder", talk: "Chat", question: "Your question", send: "Send", stop: "Stop",
    key: "API key", "key-help": "This server needs a key; ask its administrator. The key stays in this tab.", ok: "OK",
    user: "Question", assistant: "Answer", retry: "Answer again", edit: "Edit", copy: "Copy", copied: "Copied",
    map: "Where from", "map-running": "Computing", "map-help": "The stronger the color, the more the probability of this answer falls when the region is blanked. It shows what the model used, not whether the answer is right.",
    "map-none": "No region lowers the probability of this answer when it is blanked: it does not depend on one part of the image.",
    "map-scale": "fall of the log probability", low: "The model is not sure of this answer.", confidence: "confidence", tokens: "tokens", cached: "cached",
    window: "center/width", auto: "default window", invert: "Invert", measure: "Distance", angle: "Angle", region: "Region", reset: "Reset", remove: "Remove",
    slice: "slice", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", frame: "frame", zoom: "zoom", link: "Link",
    "canvas-help": "Image. Arrow keys change the slice or move, plus and minus zoom, 0 resets, I inverts.", loading: "Reading", loaded: "Loaded", failed: "Cannot be read",
    regionNote: " (The question is about the marked region; the second image shows it enlarged.)", "no-spacing": "pixels",
    aborted: "stopped", error: "Error", offline: "the server cannot be reached", "length": "The answer reached its length limit and may be incomplete.",
    "export-title": "Conversation", model: "Model", date: "Date", confirmNew: "Start a new chat and remove the images?", "too-many": "at most 8 images are shown at a time",
    send_first: "Write a question first", "context-image": "Image",
    suggestions: {
      "": ["Is there anything abnormal?", "Describe this image.", "Which examination is this?", "On which side is the lesion?"],
    },
  },
};
let language = "zh";
function T(name) { return TEXTS[language][name] ?? TEXTS.zh[name] ?? name; }
function applyLanguage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = T(node.dataset.text);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = T(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", T(node.dataset.label));
  const button = document.getElementById("language");
  button.textContent = language === "zh" ? "English" : "中文";
  button.lang = language === "zh" ? "en" : "zh-CN";
}
